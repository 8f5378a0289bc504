//! Whether an answer is whole. The vendor's parser takes XML that ends in the middle for XML that has no
//! more to say, and a list that something between us and EC2 has cut would be a shorter list.

use aws_sdk_ec2::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_ec2::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_ec2::error::BoxError;

/// Refuses answers of success that do not end as they should: the effect is unknown then.
#[derive(Debug)]
pub(super) struct Whole;

impl Intercept for Whole {
    fn name(&self) -> &'static str {
        "Whole"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response();
        let ends = response.body().bytes().is_none_or(ends);
        match response.status().is_success() && !ends {
            true => Err("the answer ends in the middle".into()),
            false => Ok(()),
        }
    }
}

/// Every operation's answer is an element that has the operation's name and `Response`.
fn ends(body: &[u8]) -> bool {
    body.trim_ascii_end().ends_with(b"Response>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_answer_does_not_end() {
        assert!(ends(
            b"<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>\n"
        ));
        for half in ["", "<DescribeInstancesResponse><reservationSet><item>", "<html></html>"] {
            assert!(!ends(half.as_bytes()), "{half}");
        }
    }
}

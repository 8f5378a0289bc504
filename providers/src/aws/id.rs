//! The forms of EC2's names and ids (providers.md 3.1), looked at before any call.

/// `ami-`, `subnet-`, `sg-`, `vol-` and 8 to 17 hexadecimal digits.
///
/// # Errors
/// What is wrong with the text.
pub(super) fn id(text: &str, prefix: &str) -> Result<String, String> {
    let digits = text.strip_prefix(prefix).unwrap_or_default();
    let hex = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if hex && (8..=17).contains(&digits.len()) {
        return Ok(text.to_owned());
    }
    Err(format!("is not {prefix} and 8 to 17 hexadecimal digits"))
}

/// `[a-z]{2}(-[a-z]+)+-\d`.
pub(super) fn region(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('-').collect();
    let fine = match parts.as_slice() {
        [land, middle @ .., number] if !middle.is_empty() => {
            land.len() == 2
                && std::iter::once(land)
                    .chain(middle)
                    .all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase()))
                && number.len() == 1
                && number.bytes().all(|b| b.is_ascii_digit())
        }
        _ => false,
    };
    if fine { Ok(text.to_owned()) } else { Err("is not a region such as eu-west-1".to_owned()) }
}

/// `m6a.large`; in a list of permitted ones also `m6a.*`.
pub(super) fn instance_type(text: &str, pattern: bool) -> Result<String, String> {
    let word = |s: &str| {
        !s.is_empty()
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    match text.split_once('.') {
        Some((family, size)) if word(family) && (word(size) || (pattern && size == "*")) => {
            Ok(text.to_owned())
        }
        _ => Err("is not an instance type such as m6a.large".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_prefix_and_digits() {
        assert!(id("ami-0123456789abcdef0", "ami-").is_ok() && id("sg-01234567", "sg-").is_ok());
        for bad in
            ["", "ami-", "ami-0123456", "ami-0123456789abcdef01", "ami-0123456G", "sg-01234567"]
        {
            assert!(id(bad, "ami-").is_err(), "{bad}");
        }
    }

    #[test]
    fn regions_have_their_form() {
        for good in ["eu-west-1", "us-gov-east-1", "ap-southeast-4"] {
            assert!(region(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "eu",
            "eu-1",
            "eu-west-1a",
            "eu-west",
            "EU-west-1",
            "eu--1",
            "eu-west-11",
            "e-west-1",
        ] {
            assert!(region(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_star_is_for_lists_alone() {
        assert!(instance_type("m6a.large", false).is_ok() && instance_type("m6a.*", true).is_ok());
        assert!(instance_type("u-6tb1.112xlarge", false).is_ok());
        for bad in ["", "m6a", "m6a.*", ".large", "m6a.", "M6a.large", "m6a.large.x"] {
            assert!(instance_type(bad, false).is_err(), "{bad}");
        }
    }
}

//! AWS: `spot/instance-action` is there from two minutes before the end; until then it is not found.

use std::time::Duration;

use peerpod_tunnel::link::session::Interruption;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::{AskError, LONGEST, millis};
use crate::metadata::{Metadata, Request};

/// How long a token is good, and how long it is used.
const TOKEN: (&str, Duration) = ("21600", Duration::from_secs(10_800));

pub(super) struct Asker {
    address: String,
    token: Option<(String, Instant)>,
}

#[derive(Deserialize)]
struct Action {
    action: String,
    #[serde(default)]
    time: String,
}

impl Asker {
    pub(super) fn new(address: String) -> Self {
        Self { address, token: None }
    }

    pub(super) async fn ask(&mut self) -> Result<Option<Interruption>, AskError> {
        let service = Metadata::new(&self.address);
        let token = match self.token.take().filter(|(_, since)| since.elapsed() < TOKEN.1) {
            Some(token) => token,
            None => {
                let lifetime = ("x-aws-ec2-metadata-token-ttl-seconds", TOKEN.0);
                let headers = [lifetime];
                let request = Request::put("/latest/api/token", &headers).at_most(LONGEST);
                let token = service.call(&request).await?;
                (String::from_utf8_lossy(&token).trim().to_owned(), Instant::now())
            }
        };
        let headers = [("x-aws-ec2-metadata-token", token.0.as_str())];
        let request = Request::get("/latest/meta-data/spot/instance-action", &headers);
        let answer = service.call(&request.at_most(LONGEST)).await;
        // With any other failure the next question begins with a new token.
        match answer {
            Err(error) if error.is_status(404) => {
                self.token = Some(token);
                Ok(None)
            }
            Err(error) => Err(error.into()),
            Ok(body) => read(&body).map(Some),
        }
    }
}

fn read(body: &[u8]) -> Result<Interruption, AskError> {
    let action: Action = serde_json::from_slice(body).map_err(|_| AskError::Answer("AWS"))?;
    let deadline_ms = millis(OffsetDateTime::parse(&action.time, &Rfc3339).ok());
    Ok(Interruption { kind: action.action, deadline_ms, source: "aws".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_read_and_nothing_else() {
        let said = read(br#"{"action": "terminate", "time": "2017-09-18T08:22:00Z"}"#);
        let said = said.expect("an action");
        assert_eq!((said.kind.as_str(), said.deadline_ms), ("terminate", 1_505_722_920_000));
        assert_eq!(read(br#"{"action": "stop", "time": "soon"}"#).expect("read").deadline_ms, 0);
        for wrong in ["", "<html>", "[]", "{\"time\": \"2017-09-18T08:22:00Z\"}"] {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}

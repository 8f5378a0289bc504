//! Google Cloud: `instance/preempted` turns to TRUE, about 30 s ahead; no time is said. The service holds a
//! question back until its answer is another one than that of the tag, so none is missed in between.

use std::time::Duration;

use peerpod_tunnel::link::session::Interruption;

use super::{AskError, LONGEST};
use crate::metadata::{Metadata, Request};
use crate::userdata::GOOGLE_HEADER;

const PATH: &str = "/computeMetadata/v1/instance/preempted";
/// How long the service holds a question back, and how long the whole may take.
const HOLD: (u32, Duration) = (60, Duration::from_secs(75));
/// Longest tag; Google's have 16 characters.
const TAG: usize = 64;

pub(super) struct Asker {
    address: String,
    tag: Option<String>,
}

impl Asker {
    pub(super) fn new(address: String) -> Self {
        Self { address, tag: None }
    }

    pub(super) async fn ask(&mut self) -> Result<Option<Interruption>, AskError> {
        let path = match self.tag.take() {
            None => PATH.to_owned(),
            Some(tag) => {
                format!("{PATH}?wait_for_change=true&timeout_sec={}&last_etag={tag}", HOLD.0)
            }
        };
        let headers = [GOOGLE_HEADER];
        let request = Request::get(path, &headers).within(HOLD.1).at_most(LONGEST);
        let answer = Metadata::new(&self.address).ask(&request).await?;
        self.tag = answer.etag.filter(|tag| is_tag(tag));
        match answer.body.trim_ascii() {
            b"TRUE" => Ok(Some(Interruption {
                kind: "preempt".to_owned(),
                deadline_ms: 0,
                source: "gcp".to_owned(),
            })),
            b"FALSE" => Ok(None),
            _ => Err(AskError::Answer("Google Cloud")),
        }
    }
}

/// What can stand in a path as it is.
fn is_tag(text: &str) -> bool {
    (1..=TAG).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

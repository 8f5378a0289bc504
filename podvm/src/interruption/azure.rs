//! Azure: scheduled events. `Preempt` is the one by which a spot VM goes, 30 s ahead at least. A list may be
//! that of several VMs, so the event must name this one.

use std::time::Duration;

use peerpod_tunnel::link::session::Interruption;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::{AskError, LONGEST, millis};
use crate::metadata::{Metadata, Request};

const HEADER: [(&str, &str); 1] = [("metadata", "true")];
const NAME: &str = "/metadata/instance/compute/name?api-version=2021-01-01&format=text";
const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
/// The first question turns the events on for the VM, which may take up to two minutes.
const FIRST: Duration = Duration::from_secs(130);

pub(super) struct Asker {
    address: String,
    name: Option<String>,
    asked: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    event_type: String,
    #[serde(default)]
    resources: Vec<String>,
    /// Empty once it has begun.
    #[serde(default)]
    not_before: String,
}

impl Asker {
    pub(super) fn new(address: String) -> Self {
        Self { address, name: None, asked: false }
    }

    pub(super) async fn ask(&mut self) -> Result<Option<Interruption>, AskError> {
        let service = Metadata::new(&self.address);
        // After a failure it is asked for again: what it was may have been nonsense.
        let name = match self.name.take() {
            Some(name) => name,
            None => {
                let name = service.call(&Request::get(NAME, &HEADER).at_most(LONGEST)).await?;
                let name = String::from_utf8_lossy(&name).trim().to_owned();
                Some(name).filter(|name| is_name(name)).ok_or(AskError::Answer("Azure"))?
            }
        };
        let mut request = Request::get(EVENTS, &HEADER).at_most(LONGEST);
        if !self.asked {
            request = request.within(FIRST);
        }
        let body = service.call(&request).await?;
        self.asked = true;
        let said = read(&body, &name)?;
        self.name = Some(name);
        Ok(said)
    }
}

/// What Azure lets a VM be called.
fn is_name(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=80).contains(&text.len()) && text.bytes().all(legal)
}

fn read(body: &[u8], name: &str) -> Result<Option<Interruption>, AskError> {
    let document: Document = serde_json::from_slice(body).map_err(|_| AskError::Answer("Azure"))?;
    let ours = |event: &&Event| {
        event.event_type == "Preempt"
            && event.resources.iter().any(|r| r.eq_ignore_ascii_case(name))
    };
    Ok(document.events.iter().find(ours).map(|event| {
        let deadline_ms = millis(OffsetDateTime::parse(&event.not_before, &Rfc2822).ok());
        Interruption { kind: "preempt".to_owned(), deadline_ms, source: "azure".to_owned() }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_preemption_of_this_vm_counts() {
        let of = |kind: &str, resource: &str| {
            let text = format!(
                r#"{{"DocumentIncarnation": 2, "Events": [{{"EventId": "x", "EventStatus": "Scheduled",
                    "EventType": "{kind}", "ResourceType": "VirtualMachine", "Resources": ["{resource}"],
                    "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT", "DurationInSeconds": -1}}]}}"#
            );
            read(text.as_bytes(), "podvm-web-1").expect("a document")
        };
        let said = of("Preempt", "PODVM-web-1").expect("ours");
        assert_eq!((said.kind.as_str(), said.deadline_ms), ("preempt", 1_474_309_787_000));
        assert_eq!(of("Preempt", "another"), None);
        assert_eq!(of("Reboot", "podvm-web-1"), None);
        let none = read(br#"{"DocumentIncarnation": 1, "Events": []}"#, "x");
        assert_eq!(none.expect("a document"), None);
        for wrong in ["", "<html>", r#"{"Events": 1}"#, r#"{"Events": [{}]}"#] {
            assert!(read(wrong.as_bytes(), "x").is_err(), "{wrong}");
        }
    }
}

//! `peerpodd doctor cloud`: whether VMs can be made, and if not, what is missing and how to get it.

use peerpod_providers::Report;
use peerpod_providers::report::{Finding, State};
use serde::Serialize;

use super::{Answer, TheProvider, in_time};
use crate::text::one_line;

#[derive(Serialize)]
struct Shown<'a> {
    provider: String,
    well: bool,
    findings: &'a [Finding],
    types: Vec<&'a str>,
}

pub(super) async fn ask(provider: &TheProvider, json: bool) -> anyhow::Result<Answer> {
    let report = in_time(provider.check()).await?;
    let well = report.problems().is_none();
    let name = provider.to_string();
    let text = if json { as_json(&name, well, &report)? } else { as_text(&name, well, &report) };
    Ok(Answer { text, code: u8::from(!well) })
}

fn as_json(provider: &str, well: bool, report: &Report) -> anyhow::Result<String> {
    let types = report.types.iter().map(|t| t.name.as_str()).collect();
    let shown = Shown { provider: provider.to_owned(), well, findings: &report.findings, types };
    Ok(format!("{}\n", serde_json::to_string_pretty(&shown)?))
}

fn as_text(provider: &str, well: bool, report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let word = match finding.state {
            State::Fine => "ok     ",
            State::Warning => "warning",
            State::Problem => "PROBLEM",
        };
        text.push_str(&format!("{word}  {}: {}\n", finding.subject, one_line(&finding.text)));
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("         do: {}\n", one_line(remedy)));
        }
    }
    let types = report.types.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
    if !types.is_empty() {
        text.push_str(&format!("types    {types}\n"));
    }
    let problems = report.in_state(State::Problem).count();
    text.push_str(&match well {
        true => format!("{provider}: VMs can be made\n"),
        false => format!("{provider}: no VM can be made, {problems} problems\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let findings = vec![
            Finding::fine("credentials", "role of this instance"),
            Finding::problem("firewall", "udp/9000 is closed").remedy("open it"),
        ];
        Report { findings, ..Report::default() }
    }

    #[test]
    fn every_finding_is_shown_with_what_to_do() {
        let text = as_text("aws", false, &report());
        let expected = "ok       credentials: role of this instance\n\
                        PROBLEM  firewall: udp/9000 is closed\n         do: open it\n\
                        aws: no VM can be made, 1 problems\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn json_says_the_same() {
        let text = as_json("aws", false, &report()).expect("written");
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&value["well"], &value["provider"]), (&false.into(), &"aws".into()));
        assert_eq!(value["findings"][1]["state"], "problem");
        assert_eq!(value["findings"][1]["remedy"], "open it");
    }
}

//! `peerpodd doctor cloud`, `leaks`, `console`: a few words of their own, then settings as those of a
//! process.

use clap::{Arg, Command};

use super::{Call, Leave, Start};
use crate::cloud::Question;

const DOCTOR: &str = "doctor cloud [provider] [settings] [-o json]\n";
const LEAKS: &str = "leaks [--delete] [--all] [--copies] [--node-gone NODE] [settings] [-o json]\n";
const CONSOLE: &str = "console VM|POD [settings]\n";

/// The call, if the first word is one of these.
pub(super) fn read(start: &Start, args: &[String]) -> Option<Result<Call, Leave>> {
    let (word, rest) = args.split_first()?;
    Some(match word.as_str() {
        "doctor" => match rest.split_first() {
            Some((what, rest)) if what == "cloud" => call(start, Question::Doctor, rest, DOCTOR),
            _ => Err(usage(DOCTOR)),
        },
        "leaks" => leaks(rest).and_then(|(question, rest)| call(start, question, &rest, LEAKS)),
        "console" => match rest.split_first() {
            Some((whose, rest)) if !whose.starts_with('-') => {
                call(start, Question::Console(whose.clone()), rest, CONSOLE)
            }
            _ => Err(usage(CONSOLE)),
        },
        _ => return None,
    })
}

/// Takes the flags of `leaks` out of the arguments.
fn leaks(args: &[String]) -> Result<(Question, Vec<String>), Leave> {
    let (mut delete, mut all, mut copies) = (false, false, false);
    let (mut gone, mut rest) = (None, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--delete" => delete = true,
            "--all" => all = true,
            "--copies" => copies = true,
            "--node-gone" => gone = Some(args.next().cloned().ok_or_else(|| usage(LEAKS))?),
            other => match other.strip_prefix("--node-gone=") {
                Some(node) => gone = Some(node.to_owned()),
                None => rest.push(other.to_owned()),
            },
        }
    }
    Ok((Question::Leaks { delete, all, copies, gone }, rest))
}

fn call(start: &Start, question: Question, args: &[String], shape: &str) -> Result<Call, Leave> {
    let loaded = start.load(args);
    if loaded.asked.help {
        let settings = "settings are those of `peerpodd node --help`\n";
        return Ok(Call::Say(format!("usage: peerpodd {shape}{settings}")));
    }
    Ok(Call::Cloud { question, loaded })
}

fn usage(shape: &str) -> Leave {
    Leave { text: format!("usage: peerpodd {shape}"), code: 2 }
}

/// For the list of subcommands; their arguments are read here.
pub(super) fn commands() -> [Command; 3] {
    let command = |name, about| {
        Command::new(name).about(about).arg(Arg::new("words").num_args(0..)).disable_help_flag(true)
    };
    [
        command(
            "doctor",
            "doctor cloud: whether VMs can be made, what is missing and how to get it",
        ),
        command(
            "leaks",
            "VMs and parts of this node's that belong to no pod; --delete takes them away",
        ),
        command("console", "The last of what a VM has written to its console"),
    ]
}

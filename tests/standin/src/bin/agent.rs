//! `standin-agent`: the agent, the programs its containers run, and the survey.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use peerpod_standin::agent::{Agent, Options};
use peerpod_standin::lab::isolate::{self, Stage};
use peerpod_standin::lab::survey::Survey;
use peerpod_standin::lab::{Binaries, Lab};
use peerpod_standin::tool::{self, ExecIn, NoLocks, Tool};

/// Behaves like a kata-agent on the wire; isolates nothing.
#[derive(Debug, Parser)]
#[command(name = "standin-agent", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Where to listen: unix://PATH.
    #[arg(long, env = "KATA_AGENT_SERVER_ADDR")]
    listen: Option<String>,
    /// The real agent's configuration file; only its `server_addr` is read.
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// File for what was seen, as JSON.
    #[arg(long)]
    record: Option<PathBuf>,
    /// File with a JSON list of fault rules, read whenever it changes.
    #[arg(long)]
    control: Option<PathBuf>,
    /// JSON list of fault rules.
    #[arg(long)]
    faults: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A container's program.
    #[command(subcommand)]
    Tool(Tool),
    /// Enters a network namespace and becomes another program.
    ExecIn(ExecIn),
    /// Becomes another program that meets a file system without locks.
    NoLocks(NoLocks),
    /// Runs a command inside namespaces of its own, as a lab does for an ordinary user.
    Isolated {
        /// The program and its arguments; `standin-agent` is this very one.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Makes a lab, says where it is, and takes it away when stdin ends.
    Lab {
        /// Pods in it.
        #[arg(long, default_value_t = 1)]
        pods: u8,
    },
    /// Looks for what a daemon has left behind and prints it as JSON.
    Survey(Survey),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Command::Tool(tool)) => tool::run(tool),
        Some(Command::ExecIn(exec)) => return stayed(&exec.run()),
        Some(Command::NoLocks(exec)) => return stayed(&exec.run()),
        Some(Command::Isolated { command }) => match isolated(&command) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Some(Command::Lab { pods }) => lab(pods),
        Some(Command::Survey(survey)) => survey.print(),
        None => arguments.serve.run(),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("standin-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Was to become another program, and could not.
fn stayed(done: &anyhow::Result<std::convert::Infallible>) -> ExitCode {
    if let Err(error) = done {
        eprintln!("standin-agent: {error:#}");
    }
    ExitCode::from(127)
}

fn isolated(command: &[String]) -> anyhow::Result<ExitCode> {
    if let Stage::Ended(code) = isolate::enter()? {
        return Ok(code);
    }
    let (program, arguments) = command.split_first().context("no program")?;
    let itself = program == "standin-agent";
    let path = if itself { "/proc/self/exe" } else { program.as_str() };
    #[allow(clippy::disallowed_methods, reason = "starting a program is its purpose")]
    let status = std::process::Command::new(path).args(arguments).status();
    let status = status.with_context(|| format!("start {program}"))?;
    Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)))
}

fn lab(pods: u8) -> anyhow::Result<u8> {
    let own = std::env::current_exe().context("where the program lies")?;
    let binaries = Binaries { peerpodd: own.clone(), podvm: own.clone(), agent: own };
    tokio::runtime::Runtime::new().context("start the runtime")?.block_on(async {
        let lab = Lab::new(binaries).await?;
        for number in 0..pods {
            lab.add_pod(number).await?;
        }
        let uid = nix::unistd::geteuid();
        println!("{pods} pods in {}, uid {uid}", lab.dir().path().display());
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).context("wait for the end")?;
        Ok(0)
    })
}

impl Serve {
    fn run(self) -> anyhow::Result<u8> {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        let options = Options {
            listen: self.socket()?,
            record: self.record,
            control: self.control,
            faults: match &self.faults {
                Some(text) => serde_json::from_str(text).context("--faults")?,
                None => Vec::new(),
            },
            executable: None,
        };
        let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
        runtime.block_on(async {
            let agent = Agent::bind(options)?;
            agent.serve().await
        })?;
        runtime.shutdown_background();
        Ok(0)
    }

    fn socket(&self) -> anyhow::Result<PathBuf> {
        let address = match (&self.listen, &self.config) {
            (Some(address), _) => address.clone(),
            (None, Some(file)) => {
                let text = std::fs::read_to_string(file);
                let text = text.with_context(|| format!("read {}", file.display()))?;
                let all: toml::Table = text.parse().context("the configuration file")?;
                let address = all.get("server_addr").and_then(|a| a.as_str());
                address.context("server_addr is not set")?.to_owned()
            }
            (None, None) => "unix:///run/kata-containers/agent.sock".to_owned(),
        };
        let path = address.strip_prefix("unix://").unwrap_or(&address);
        anyhow::ensure!(path.starts_with('/'), "{address:?} is not unix:///PATH");
        Ok(PathBuf::from(path))
    }
}

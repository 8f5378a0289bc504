//! The command line. Upstream's forwarder takes Go's flags, so one dash and two mean the same here.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use podvm::contract;

use crate::userdata::SourceChoice;
use crate::volumes::hand;

const FORWARDER: &str = "forwarder";
const PROCESS_USER_DATA: &str = "process-user-data";

/// The program in a pod VM: user data, pod network, agent forwarder.
#[derive(Debug, Parser)]
#[command(name = "podvm", version, propagate_version = true, disable_version_flag = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) log: Log,
    /// Print the version.
    #[arg(short = 'v', long, action = ArgAction::Version, global = true)]
    version: Option<bool>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// User data, pod network and forwarder in one process (the default).
    Run(Run),
    /// Only fetch the user data and write its files.
    ProcessUserData(ProcessUserData),
    /// Only the pod network and the forwarder, from files that are there.
    Forwarder(Forwarder),
    /// The process that makes file systems; podvm starts it itself.
    #[command(name = hand::NAME, hide = true)]
    VolumeHand(VolumeHand),
}

impl Command {
    /// The forwarder, where one is to run.
    pub(crate) fn serve(&self) -> Option<&Serve> {
        match self {
            Self::Run(args) => Some(&args.serve),
            Self::Forwarder(args) if args.job.is_none() => Some(&args.serve),
            Self::Forwarder(_) | Self::ProcessUserData(_) | Self::VolumeHand(_) => None,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct VolumeHand {
    /// Where volumes are mounted.
    #[arg(long)]
    pub(crate) base: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) user_data: UserData,
    #[command(flatten)]
    pub(crate) serve: Serve,
}

#[derive(Debug, Args)]
pub(crate) struct ProcessUserData {
    #[command(subcommand)]
    pub(crate) job: ProvisionJob,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProvisionJob {
    /// Fetch the user data and write its files.
    ProvisionFiles(UserData),
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Forwarder {
    #[command(subcommand)]
    pub(crate) job: Option<ForwarderJob>,
    /// Configuration written from the user data.
    #[arg(long, default_value = contract::APF)]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) serve: Serve,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ForwarderJob {
    /// Print the version.
    Version,
}

/// Where user data come from and where their files go.
#[derive(Debug, Args)]
pub(crate) struct UserData {
    /// How long to try, in seconds.
    #[arg(short = 't', long, default_value = "180", value_parser = seconds)]
    pub(crate) user_data_fetch_timeout: Duration,
    /// Who has the user data; auto looks at the machine.
    #[arg(long, value_enum, default_value_t = SourceChoice::Auto)]
    pub(crate) source: SourceChoice,
    /// User data of a NoCloud disk.
    #[arg(long, default_value = contract::USER_DATA)]
    pub(crate) user_data: PathBuf,
    /// The cloud's metadata service, if it is not where that cloud has it (host:port).
    #[arg(long)]
    pub(crate) metadata_address: Option<String>,
    /// Where the files are written that travel to /run/peerpod.
    #[arg(long, default_value = contract::RUN_DIR)]
    pub(crate) run_dir: PathBuf,
}

/// The forwarder; names and defaults are upstream's.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address to listen on [default: port 15150 of every address, IPv6 and IPv4].
    #[arg(long, value_parser = listen_address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Where kata-agent listens.
    #[arg(long, default_value = contract::AGENT_SOCKET, visible_alias = "agent-socket")]
    pub(crate) kata_agent_socket: PathBuf,
    /// The pod's network namespace; made if it is not there.
    #[arg(long, default_value = contract::PODNS, visible_alias = "podns")]
    pub(crate) pod_namespace: PathBuf,
    /// Interface that carries the tunnel [default: that of the default route].
    #[arg(long)]
    pub(crate) host_interface: Option<String>,
    /// CA, or the client's own certificate, that clients must show (PEM).
    #[arg(long)]
    pub(crate) ca_cert_file: Option<PathBuf>,
    /// The forwarder's certificate (PEM); taken before that of the configuration.
    #[arg(long, requires = "cert_key")]
    pub(crate) cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, requires = "cert_file")]
    pub(crate) cert_key: Option<PathBuf>,
    /// Ask for no client certificate.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", conflicts_with = "ca_cert_file", action = ArgAction::Set)]
    pub(crate) tls_skip_verify: bool,
    /// Serve without TLS.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub(crate) disable_tls: bool,
    /// How long to wait for a default route and an address, in seconds.
    #[arg(long, default_value = "180", value_parser = seconds)]
    pub(crate) network_wait: Duration,
    /// How long a connection waits for the agent, in seconds.
    #[arg(long, default_value = "150", value_parser = seconds)]
    pub(crate) agent_wait: Duration,
    /// How long a frame that has begun may stand still, in seconds.
    #[arg(long, default_value = "30", value_parser = seconds)]
    pub(crate) frame_stall: Duration,
    /// Never choose peerpod-link/1: each connection stands for itself, as with older images.
    #[arg(long)]
    pub(crate) plain_link: bool,
    #[command(flatten)]
    pub(crate) volumes: Volumes,
    #[command(flatten)]
    pub(crate) notices: Notices,
}

/// What a spot VM hears of its end. It is asked for only once the worker wants to know.
#[derive(Debug, Args)]
pub(crate) struct Notices {
    /// Which cloud says that it takes the VM back; auto looks at the machine.
    #[arg(long, value_enum, default_value_t = NoticeSource::Auto)]
    pub(crate) spot_notice: NoticeSource,
    /// That cloud's metadata service, if it is not where that cloud has it (host:port).
    #[arg(long)]
    pub(crate) spot_notice_address: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NoticeSource {
    Auto,
    Aws,
    Azure,
    Gcp,
    None,
}

/// The pod's volumes.
#[derive(Debug, Args)]
pub(crate) struct Volumes {
    /// Where they are mounted.
    #[arg(long, default_value = contract::VOLUMES)]
    pub(crate) volume_dir: PathBuf,
    /// Socket of the confidential data hub, which mounts encrypted ones.
    #[arg(long, default_value = contract::CDH_SOCKET)]
    pub(crate) cdh_socket: PathBuf,
    /// How long a disk may take to appear, in seconds.
    #[arg(long, default_value = "60", value_parser = seconds)]
    pub(crate) disk_wait: Duration,
    /// A disk's id and its device (may be repeated); then there are no others. Otherwise disks are known
    /// by the cloud's id, their serial or, on Azure, their LUN.
    #[arg(long, value_name = "ID=DEVICE", value_parser = disk)]
    pub(crate) disk: Vec<(String, PathBuf)>,
    /// Whether the VM is a confidential one, in which empty disks are not formatted without a key; auto
    /// looks at the machine.
    #[arg(long, value_enum, default_value_t = Confidential::Auto)]
    pub(crate) confidential: Confidential,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Confidential {
    Auto,
    Yes,
    No,
}

/// How much is logged, to stderr.
#[derive(Debug, Args)]
pub(crate) struct Log {
    /// error, warn, info, debug or trace.
    #[arg(long, env = "PODVM_LOG", default_value = "info", global = true)]
    log_level: tracing::Level,
    /// Form of a line.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl Log {
    pub(crate) fn start(&self) {
        let lines = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_max_level(self.log_level)
            .with_ansi(false)
            .with_target(false);
        match self.log_format {
            LogFormat::Text => lines.init(),
            LogFormat::Json => lines.json().init(),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    let whole: u32 = number.parse().map_err(|_| "not a whole number of seconds".to_owned())?;
    Ok(Duration::from_secs(whole.into()))
}

/// An id may hold a '=', a device does not.
fn disk(text: &str) -> Result<(String, PathBuf), String> {
    match text.rsplit_once('=') {
        Some((id, device)) if !id.is_empty() && device.starts_with("/dev/") => {
            Ok((id.to_owned(), device.into()))
        }
        _ => Err("not of the form ID=/dev/NAME".to_owned()),
    }
}

/// Go's form of an address: the host may be left out.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse().map_err(|_| "not an IP address with a port".to_owned())
}

/// The arguments as clap takes them: the program's name becomes the subcommand it stands for, a
/// single dash before a long name becomes two, and no subcommand at all is `run`.
pub(crate) fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut given = given;
    let program = given.next().unwrap_or_else(|| "podvm".into());
    let mut rest: Vec<OsString> = given.map(two_dashes).collect();
    match Path::new(&program).file_name().and_then(|n| n.to_str()) {
        Some("agent-protocol-forwarder") => rest.insert(0, FORWARDER.into()),
        Some(PROCESS_USER_DATA) => rest.insert(0, PROCESS_USER_DATA.into()),
        _ if rest.is_empty() => rest.push("run".into()),
        _ => {}
    }
    rest.insert(0, program);
    rest
}

fn two_dashes(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if long_name_behind_one_dash(text) => format!("-{text}").into(),
        _ => argument,
    }
}

fn long_name_behind_one_dash(text: &str) -> bool {
    let Some(name) = text.strip_prefix('-') else { return false };
    let name = name.split('=').next().unwrap_or_default();
    let mut letters = name.chars().map(|c| c.is_ascii_lowercase());
    // "-t7" is a short name with its value.
    letters.next() == Some(true) && letters.next() == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(arguments(line.split(' ').map(OsString::from)))
    }

    fn forwarder(line: &str) -> Forwarder {
        match parse(line).expect("parse").command {
            Command::Forwarder(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_forwarder_takes_upstreams_flags_with_one_dash_and_with_two() {
        for dash in ["-", "--"] {
            let line = "/usr/local/bin/agent-protocol-forwarder @config /a @listen 0.0.0.0:15150 \
                        @kata-agent-socket=/b @pod-namespace /c @host-interface ens5 @ca-cert-file /d \
                        @cert-file /e @cert-key /f @disable-tls";
            let args = forwarder(&line.replace('@', dash));
            assert_eq!(args.config, Path::new("/a"));
            assert_eq!(args.serve.listen, "0.0.0.0:15150".parse().ok());
            assert_eq!(args.serve.kata_agent_socket, Path::new("/b"));
            assert_eq!(args.serve.host_interface.as_deref(), Some("ens5"));
            assert!(args.serve.disable_tls && !args.serve.tls_skip_verify);
        }
        assert!(!forwarder("podvm forwarder -disable-tls=false").serve.disable_tls);
        assert!(matches!(
            forwarder("agent-protocol-forwarder version").job,
            Some(ForwarderJob::Version)
        ));
    }

    #[test]
    fn user_data_are_processed_under_upstreams_name() {
        for line in [
            "process-user-data provision-files -t 7",
            "process-user-data provision-files -t7",
            "podvm process-user-data provision-files --user-data-fetch-timeout=7",
        ] {
            let Command::ProcessUserData(args) = parse(line).expect("parse").command else {
                panic!("{line}")
            };
            let ProvisionJob::ProvisionFiles(args) = args.job else { panic!("{line}") };
            assert_eq!(args.user_data_fetch_timeout, Duration::from_secs(7));
        }
    }

    #[test]
    fn nothing_is_run_and_v_is_the_version() {
        assert!(matches!(parse("podvm").expect("parse").command, Command::Run(_)));
        for line in ["podvm -v", "process-user-data -v", "agent-protocol-forwarder --version"] {
            let kind = parse(line).expect_err("version").kind();
            assert_eq!(kind, clap::error::ErrorKind::DisplayVersion, "{line}");
        }
        assert!(parse("podvm run --listen nowhere").is_err());
        assert!(parse("podvm run --cert-file /a").is_err());
    }

    #[test]
    fn disks_are_given_by_id_and_device() {
        let disks =
            forwarder("podvm forwarder --disk a=b=/dev/loop0 --disk c=/dev/sdc").serve.volumes.disk;
        let of = |id: &str, device: &str| (id.to_owned(), PathBuf::from(device));
        assert_eq!(disks, [of("a=b", "/dev/loop0"), of("c", "/dev/sdc")]);
        for wrong in ["x", "=/dev/sdb", "x=sdb", "x=/etc/passwd"] {
            assert!(parse(&format!("podvm forwarder --disk {wrong}")).is_err(), "{wrong}");
        }
    }
}

//! `peerpodd status`: asks the running node process what it knows, and prints it.
//!
//! One line per pod; for one pod everything about it and its timeline.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::admin::Report;
use crate::pods::PodStatus;
use crate::text::{aligned, one_line};

/// How long the daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// No answer is that large: a thousand pods have about two megabytes.
const LARGEST: usize = 64 << 20;

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody listens.
    #[error(
        "no peerpodd node answers on 127.0.0.1:{port}; is it running? (its port is --probe-port or \
         PROBE_PORT)"
    )]
    NotRunning {
        /// The port.
        port: u16,
    },
    /// Somebody listens, but is not the daemon or is not well.
    #[error("127.0.0.1:{port}{path} gave no usable answer: {reason}")]
    Answer {
        /// The port.
        port: u16,
        /// What was asked for.
        path: &'static str,
        /// What was wrong.
        reason: String,
    },
    /// No pod has that name.
    #[error("no pod here is {0:?} (by name, namespace/name or the beginning of its sandbox id)")]
    Unknown(String),
}

/// Status code and body of one page of the daemon.
///
/// # Errors
/// `NotRunning` or `Answer`.
pub async fn page(port: u16, path: &'static str) -> Result<(u16, String), StatusError> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .map_err(|_| StatusError::NotRunning { port })?;
    let unusable = |reason: String| StatusError::Answer { port, path, reason };
    tokio::time::timeout(ANSWER, fetch(stream, path))
        .await
        .map_err(|_| unusable(format!("none within {ANSWER:?}")))?
        .map_err(|e| unusable(e.to_string()))
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn fetch(stream: TcpStream, path: &str) -> Result<(u16, String), AnyError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path).header("host", "localhost").body(Empty::<&[u8]>::new())?;
    let exchange = async {
        let reply = sender.send_request(request).await?;
        let code = reply.status().as_u16();
        let body = Limited::new(reply.into_body(), LARGEST).collect().await?.to_bytes();
        Ok::<_, AnyError>((code, String::from_utf8(body.to_vec())?))
    };
    // The connection is only polled while the answer is waited for.
    tokio::pin!(exchange);
    tokio::select! {
        done = &mut exchange => done,
        broken = connection => match broken {
            Ok(()) => exchange.await,
            Err(e) => Err(e.into()),
        },
    }
}

/// Asks the daemon.
///
/// # Errors
/// `NotRunning` or `Answer`.
pub async fn ask(port: u16) -> Result<Report, StatusError> {
    let path = "/status";
    let (code, body) = page(port, path).await?;
    if code != 200 {
        return Err(StatusError::Answer { port, path, reason: format!("status {code}") });
    }
    serde_json::from_str(&body).map_err(|e| StatusError::Answer {
        port,
        path,
        reason: format!("not what peerpodd says: {e}"),
    })
}

/// What to print.
///
/// # Errors
/// `Unknown` when no pod is meant by `wanted`.
pub fn print(
    report: &Report,
    wanted: Option<&str>,
    json: bool,
    now: SystemTime,
) -> Result<String, StatusError> {
    let now_ms = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
    let Some(wanted) = wanted else {
        return Ok(if json { to_json(report) } else { table(report, now_ms) });
    };
    let all = report.pods.iter().chain(&report.ended);
    let pods: Vec<&PodStatus> = all.filter(|p| is_meant(p, wanted)).collect();
    if pods.is_empty() {
        return Err(StatusError::Unknown(wanted.to_owned()));
    }
    if json {
        return Ok(to_json(&pods));
    }
    let texts: Vec<_> = pods.into_iter().map(|pod| details(pod, report, now_ms)).collect();
    Ok(texts.join("\n"))
}

fn to_json(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

fn is_meant(pod: &PodStatus, wanted: &str) -> bool {
    match wanted.split_once('/') {
        Some((namespace, name)) => pod.namespace == namespace && pod.pod == name,
        None => pod.pod == wanted || (!wanted.is_empty() && pod.sandbox.starts_with(wanted)),
    }
}

fn table(report: &Report, now_ms: u64) -> String {
    let mut text = head(report);
    if report.pods.is_empty() {
        text.push_str("no pods\n");
    } else {
        text.push_str(&pods(report, now_ms));
    }
    if !report.ended.is_empty() {
        text.push_str("\nended without having been stopped, the last ones:\n");
        text.push_str(&ended(report, now_ms));
    }
    text
}

fn pods(report: &Report, now_ms: u64) -> String {
    let mut rows = vec![
        ["NAMESPACE", "POD", "PHASE", "VM", "ADDRESS", "VNI", "LINK", "AGE", "LAST ERROR"]
            .map(str::to_owned),
    ];
    rows.extend(report.pods.iter().map(|pod| row(pod, report, now_ms)));
    aligned(&rows)
}

fn ended(report: &Report, now_ms: u64) -> String {
    let mut rows = vec![["NAMESPACE", "POD", "VM", "AGO", "REASON"].map(str::to_owned)];
    rows.extend(report.ended.iter().map(|pod| {
        let reason = pod.reason.as_deref().or(pod.last_error.as_deref());
        [
            or_dash(&pod.namespace),
            or_dash(&pod.pod),
            or_dash(pod.vm.as_deref().unwrap_or(&pod.vm_name)),
            age(now_ms, pod.since_ms),
            one_line(reason.unwrap_or("-")),
        ]
    }));
    aligned(&rows)
}

fn head(report: &Report) -> String {
    let about = &report.process;
    let mut text = format!(
        "node {} · provider {} · installation {} · peerpodd {} (pid {})\n",
        about.node, about.provider, about.installation, about.version, about.pid
    );
    if !report.relay {
        text.push_str("the relay does not answer: running pods go on, no pod can start or stop\n");
    }
    if !report.missing.is_empty() {
        let _ = writeln!(text, "not ready, missing: {}", report.missing.join(", "));
    }
    text
}

fn row(pod: &PodStatus, report: &Report, now_ms: u64) -> [String; 9] {
    let link = report.links.get(&pod.sandbox).map_or("-", |link| link.state.as_str());
    [
        or_dash(&pod.namespace),
        or_dash(if pod.pod.is_empty() { &pod.sandbox } else { &pod.pod }),
        pod.phase.clone(),
        or_dash(pod.vm.as_deref().unwrap_or(&pod.vm_name)),
        pod.addresses.first().map_or_else(|| "-".to_owned(), ToString::to_string),
        if pod.vni == 0 { "-".to_owned() } else { pod.vni.to_string() },
        link.to_owned(),
        age(now_ms, pod.created_ms),
        one_line(pod.last_error.as_deref().or(pod.reason.as_deref()).unwrap_or("-")),
    ]
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { one_line(text) }
}

fn age(now_ms: u64, then_ms: u64) -> String {
    if then_ms == 0 {
        return "-".to_owned();
    }
    let seconds = now_ms.saturating_sub(then_ms) / 1000;
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn details(pod: &PodStatus, report: &Report, now_ms: u64) -> String {
    let mut text = format!("{}/{}\n", or_dash(&pod.namespace), or_dash(&pod.pod));
    let mut line = |name: &str, value: String| {
        if !value.is_empty() && value != "-" {
            let _ = writeln!(text, "  {name:12} {}", one_line(&value));
        }
    };
    line("sandbox", pod.sandbox.clone());
    line("phase", format!("{} for {}", pod.phase, age(now_ms, pod.since_ms)));
    line("reason", pod.reason.clone().unwrap_or_default());
    line("stage", pod.stage.map(|s| s.explain().to_owned()).unwrap_or_default());
    let vm = pod.vm.clone().map(|id| format!("{id} ({})", pod.vm_name));
    line("vm", vm.unwrap_or_else(|| pod.vm_name.clone()));
    let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
    line("address", addresses.join(", "));
    let place = [&pod.instance_type, &pod.zone, &pod.price_per_hour];
    let spot = pod.spot.then(|| "spot".to_owned());
    let place = place.into_iter().flatten().cloned().chain(spot);
    line("type", place.collect::<Vec<_>>().join(", "));
    line("taken back", pod.interruption.as_ref().map(ToString::to_string).unwrap_or_default());
    line("size", pod.size_reason.clone());
    line("vni", if pod.vni == 0 { String::new() } else { pod.vni.to_string() });
    line("socket", pod.socket.clone());
    if let Some(link) = report.links.get(&pod.sandbox) {
        let to = if link.target.is_empty() { "nowhere yet" } else { &link.target };
        let bytes = format!("{} B to the VM, {} B back", link.bytes_to_vm, link.bytes_to_shim);
        let older = match link.elsewhere {
            0 => String::new(),
            n => format!(" ({n} at an older relay until they end)"),
        };
        let (state, mode, count) = (&link.state, &link.mode, link.connections);
        line("link", format!("{state} to {to} {mode}, {count} in use{older}, {bytes}"));
    }
    line("last error", pod.last_error.clone().unwrap_or_default());
    if !pod.timeline.is_empty() {
        text.push_str("  timeline\n");
    }
    for moment in &pod.timeline {
        let since = moment.at_ms.saturating_sub(pod.created_ms);
        let took = moment.took_ms.map(|ms| format!(" ({ms} ms)")).unwrap_or_default();
        let at = format!("+{}.{:03}s", since / 1000, since % 1000);
        let _ = writeln!(text, "  {at:>12} {}{took}", one_line(&moment.what));
    }
    text
}

#[cfg(test)]
mod tests;

//! Logs: lines of words and fields, or JSON objects, on standard error. The span of a pod is made
//! where the pod lives; nothing secret is a field anywhere.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// Starts logging for this process. A second call changes nothing.
pub fn init(log: &Log) {
    let terminal = std::io::stderr().is_terminal();
    if let Some(subscriber) = subscriber(log, std::io::stderr, terminal) {
        subscriber.try_init().ok();
    }
}

type Boxed = Box<dyn tracing::Subscriber + Send + Sync>;

fn subscriber<W>(log: &Log, writer: W, colours: bool) -> Option<Boxed>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // Checked when the settings were read; an unreadable filter must not silence a process.
    let filter = EnvFilter::builder()
        .parse(&log.filter)
        .or_else(|_| EnvFilter::builder().parse("info"))
        .ok()?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours);
    Some(match log.format {
        LogFormat::Text => Box::new(registry.with(layer)),
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_span_list(false);
            Box::new(registry.with(layer))
        }
    })
}

/// A panic becomes a line of the log before the process aborts (release) or the task ends (debug).
/// Its message may hold anything, so it stands in no other field.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic
            .payload()
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.payload().downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let at = panic.location().map(ToString::to_string).unwrap_or_default();
        if tracing::dispatcher::has_been_set() {
            tracing::error!(message, at, "panic");
        } else {
            eprintln!("panic at {at}: {message}");
        }
    }));
}

/// For tests that read the log. Without a subscriber for all threads, a line that a thread without
/// one comes to first is taken for one that nobody wants to hear, on every thread.
#[cfg(test)]
pub(crate) fn let_every_line_be_heard() {
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry());
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("buffer").write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let log = Log { format, filter: "info".to_owned() };
        let subscriber = subscriber(&log, move || writer.clone(), false).expect("a subscriber");
        super::let_every_line_be_heard();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("pod", pod = "web", sandbox = "s1");
            let _entered = span.enter();
            tracing::info!(phase = "running", "phase");
            tracing::debug!("not at this level");
        });
        let bytes = buffer.0.lock().expect("buffer").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn json_has_one_object_per_line_with_the_pods_fields() {
        let text = logged(LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(text.trim()).expect("one object");
        assert_eq!(line["phase"], "running");
        assert_eq!(line["span"]["pod"], "web");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn text_has_one_line_with_the_pods_fields() {
        let text = logged(LogFormat::Text);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("pod=\"web\"") && text.contains("phase=\"running\""), "{text}");
    }
}

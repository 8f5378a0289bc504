//! An exec with numbered lines flowing both ways, checked line by line while it flows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use peerpod_standin::lab::wait_for;
use peerpod_standin::shim::{Exec, Shim};
use peerpod_standin::tool::Checker;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::bed::PATIENCE;

/// A running exec of `count`.
#[derive(Debug)]
pub struct Stream {
    exec: Exec,
    numbers: Arc<AtomicU64>,
    echoes: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    /// Why nothing more is read.
    broken: Arc<std::sync::Mutex<Option<String>>>,
    reader: JoinHandle<anyhow::Result<()>>,
    writer: JoinHandle<anyhow::Result<()>>,
}

impl Stream {
    /// Starts it in the pod's pause container.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn start(shim: &Shim, id: &str) -> anyhow::Result<Self> {
        let exec = shim.exec_tool(id, &["count", "--interval", "5"]).await?;
        let checker = Arc::new(Mutex::new(Checker::default()));
        let (numbers, echoes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let over = Arc::new(AtomicBool::new(false));
        let broken = Arc::<std::sync::Mutex<Option<String>>>::default();
        let reader = {
            let (exec, checker) = (exec.clone(), checker.clone());
            let (numbers, echoes) = (numbers.clone(), echoes.clone());
            let read = async move {
                loop {
                    let bytes = exec.read_stdout().await.context("ReadStdout")?;
                    let mut checker = checker.lock().await;
                    if bytes.is_empty() {
                        return checker.finish();
                    }
                    checker.take(&bytes)?;
                    let (n, e) = checker.seen();
                    numbers.store(n, Ordering::SeqCst);
                    echoes.store(e, Ordering::SeqCst);
                }
            };
            let broken = broken.clone();
            tokio::spawn(async move {
                let done = read.await;
                let why = done.as_ref().err().map(|e| format!("{e:#}"));
                *broken.lock().unwrap_or_else(PoisonError::into_inner) = why;
                done
            })
        };
        let writer = {
            let (exec, checker, over) = (exec.clone(), checker, over.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let line = checker.lock().await.next_line();
                    exec.write_stdin(line).await.context("WriteStdin")?;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                exec.close_stdin().await.context("CloseStdin")
            })
        };
        Ok(Self { exec, numbers, echoes, over, broken, reader, writer })
    }

    /// Numbered lines and echoes so far.
    pub fn seen(&self) -> (u64, u64) {
        (self.numbers.load(Ordering::SeqCst), self.echoes.load(Ordering::SeqCst))
    }

    /// Waits until bytes have come from both directions since `before`.
    ///
    /// # Errors
    /// When they stand still.
    pub async fn moves(&self, before: (u64, u64)) -> anyhow::Result<(u64, u64)> {
        let look = || async move {
            if self.reader.is_finished() {
                let why = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
                anyhow::bail!("the stream has ended ({why:?})");
            }
            let (n, e) = self.seen();
            Ok((n > before.0 && e > before.1).then_some((n, e)))
        };
        wait_for("lines in both directions", PATIENCE, look).await
    }

    /// Closes stdin, reads to the end, and gives the number of lines of each direction.
    ///
    /// # Errors
    /// When a line was lost or repeated, or the process did not end well.
    pub async fn finish(self) -> anyhow::Result<(u64, u64)> {
        self.over.store(true, Ordering::SeqCst);
        self.writer.await.context("writer")??;
        self.reader.await.context("reader")??;
        let status = self.exec.wait().await.context("WaitProcess")?;
        anyhow::ensure!(status == 0, "count ended with {status}");
        Ok((self.numbers.load(Ordering::SeqCst), self.echoes.load(Ordering::SeqCst)))
    }
}

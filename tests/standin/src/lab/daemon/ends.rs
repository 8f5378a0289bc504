//! Processes of the daemon that are killed, ended and started again.

use std::process::Child;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Daemon, DaemonOptions, Mode, PATIENCE};
use crate::lab::{blocking, processes, wait_for};

impl Daemon {
    /// Kills `peerpodd run` itself (`kill -9`); its children live on.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill_run(&mut self) -> anyhow::Result<()> {
        let mut run = self.run.take().context("`run` does not run")?;
        self.orphans = true;
        run.kill().context("kill `run`")?;
        blocking(move || run.wait().context("bury `run`")).await.map(drop)
    }

    /// Ends `peerpodd run` in order (SIGTERM) and returns once it and its node process have ended; the
    /// relay may have stayed.
    ///
    /// # Errors
    /// When it does not run, or does not end well.
    pub async fn end_run(&mut self) -> anyhow::Result<()> {
        let node = self.node_pid();
        let run = self.run.take().context("`run` does not run")?;
        self.orphans = true;
        self.end_in_order("run", run).await?;
        let gone = move || Ok(node.is_none_or(|pid| processes::gone_within(pid, PATIENCE)));
        ensure!(blocking(gone).await?, "the node process outlives `run`");
        Ok(())
    }

    /// How whatever is started from now on is started.
    pub fn options_mut(&mut self) -> &mut DaemonOptions {
        &mut self.options
    }

    /// Starts `peerpodd run`, beside whatever else there is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_run(&mut self) -> anyhow::Result<()> {
        ensure!(self.run.is_none(), "`run` runs");
        self.orphans = true;
        self.run = Some(self.start("run").await?);
        Ok(())
    }

    /// Waits until the separate node process has been ended by somebody else.
    ///
    /// # Errors
    /// When there is none, or it goes on.
    pub async fn node_ended(&mut self) -> anyhow::Result<()> {
        let mut node = self.node.take().context("no node process of its own")?;
        let pid = i32::try_from(node.id()).context("process id")?;
        let ended = blocking(move || {
            let gone = processes::gone_within(pid, PATIENCE);
            if !gone {
                let _ = node.kill();
            }
            node.wait().context("bury the node process")?;
            Ok(gone)
        });
        ensure!(ended.await?, "the node process goes on");
        Ok(())
    }

    /// Kills the node process (`kill -9`) and returns once it is dead. `peerpodd run` starts another
    /// one; a separate one is started by [`Daemon::start_node`].
    ///
    /// # Errors
    /// When there is none.
    pub async fn kill_node(&mut self) -> anyhow::Result<i32> {
        let pid = self.node_pid().context("no node process lives")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill the node process")?;
        if let Some(mut node) = self.node.take() {
            blocking(move || node.wait().context("bury the node process")).await?;
        }
        let gone = blocking(move || Ok(processes::gone_within(pid, PATIENCE))).await?;
        ensure!(gone, "the node process survives SIGKILL");
        Ok(pid)
    }

    /// Kills the relay process likewise.
    ///
    /// # Errors
    /// When there is none.
    pub async fn kill_relay(&mut self) -> anyhow::Result<i32> {
        let pid = self.relay_pid().context("no relay process lives")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill the relay process")?;
        if let Some(mut relay) = self.relay.take() {
            blocking(move || relay.wait().context("bury the relay process")).await?;
        }
        let gone = blocking(move || Ok(processes::gone_within(pid, PATIENCE))).await?;
        ensure!(gone, "the relay process survives SIGKILL");
        Ok(pid)
    }

    /// Starts a node process where none lives ([`Mode::Separate`]), with other options if given.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_node(&mut self, options: Option<DaemonOptions>) -> anyhow::Result<()> {
        ensure!(self.options.mode == Mode::Separate && self.node.is_none(), "a node process lives");
        if let Some(options) = options {
            self.options = DaemonOptions { mode: Mode::Separate, ..options };
        }
        self.node = Some(self.start("node").await?);
        Ok(())
    }

    /// Starts another node process beside the one that lives ([`Mode::Separate`]), waits until one of the
    /// two has ended, keeps the other one, and gives the exit code.
    ///
    /// # Errors
    /// When none lives, or when both go on.
    pub async fn rival_node(&mut self) -> anyhow::Result<Option<i32>> {
        let first = self.node.take().context("no node process of its own")?;
        let mut both = [first, self.start("node").await?];
        let begin = std::time::Instant::now();
        let (ended, code) = loop {
            let [first, second] = &mut both;
            if let Some(status) = first.try_wait().context("look at the first node process")? {
                break (0, status.code());
            }
            if let Some(status) = second.try_wait().context("look at the second one")? {
                break (1, status.code());
            }
            if begin.elapsed() > PATIENCE {
                both.iter_mut().for_each(|child| drop(child.kill()));
                bail!("two node processes side by side\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let [first, second] = both;
        self.node = Some(if ended == 0 { second } else { first });
        Ok(code)
    }

    /// Starts a relay process where none lives ([`Mode::Separate`]).
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_relay(&mut self) -> anyhow::Result<()> {
        ensure!(self.options.mode == Mode::Separate && self.relay.is_none(), "a relay lives");
        self.relay = Some(self.start("relay").await?);
        Ok(())
    }

    /// Starts another relay beside the one that lives ([`Mode::Separate`]), which is given back: it
    /// hands over and ends by itself.
    ///
    /// # Errors
    /// When it cannot be started, or when none lives.
    pub async fn succeed_relay(&mut self) -> anyhow::Result<Child> {
        ensure!(self.options.mode == Mode::Separate, "the relay is a child of `peerpodd run`");
        let new = self.start("relay").await?;
        self.relay.replace(new).context("no relay lives")
    }

    /// Takes back a relay whose successor has died or is refused, and gives that one.
    pub fn keep_relay(&mut self, relay: Child) -> Option<Child> {
        self.relay.replace(relay)
    }

    /// Waits until a node process other than `old` lives and says it is ready.
    ///
    /// # Errors
    /// When none comes in time.
    pub async fn successor_of(&mut self, old: i32) -> anyhow::Result<i32> {
        let this = &*self;
        let find = || async move { Ok(this.node_pid().filter(|pid| *pid != old)) };
        let pid = wait_for("another node process", PATIENCE, find).await;
        let pid = pid.map_err(|e| e.context(self.log_tail()))?;
        self.ready().await?;
        Ok(pid)
    }
}

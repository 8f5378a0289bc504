//! kubelet and shims: pods that come and go, with all the impatience of real ones.
//!
//! ```text
//!   pod ─▶ sandbox ─ CreateVM ─▶ StartVM ─▶ runs ─▶ StopVM … or never        the sandbox failed: another one
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::core::seconds;
use crate::dice::Fault;
use crate::parts::{netns, request};
use crate::relay::{Answer, Call};
use crate::site::Site;

/// How often kubelet tries a pod.
const TRIES: u64 = 3;
/// How long shims wait.
const CREATE: Duration = Duration::from_secs(60);
const START: Duration = Duration::from_secs(600);
const STOP: Duration = Duration::from_secs(60);
/// The Rust shim's, for StopVM.
const HASTE: Duration = Duration::from_secs(1);

/// How a sandbox ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As kubelet wanted.
    Done,
    /// It runs to the end of the run.
    Kept,
    /// Another sandbox is needed.
    Failed,
}

/// A pod's whole life.
pub(crate) async fn pod(site: Arc<Site>, number: u64) {
    let core = Arc::clone(&site.core);
    core.pass_ms("pod-comes", 0, 90_000).await;
    let stays = core.dice.amount("pod-stays", 0, 3) == 0;
    let mut beside = Vec::new();
    for attempt in 0..TRIES {
        let shim = Shim::new(&site, number, attempt);
        let boots = site.boots.count();
        if attempt == 0 && core.fires(Fault::SecondSandbox, &shim.sandbox) {
            let early = core.dice.amount("second-after", 0, 30_000);
            beside.push(tokio::spawn(async move { shim.life(false).await }));
            sleep(Duration::from_millis(early)).await;
            continue;
        }
        let end = tokio::select! {
            biased;
            () = site.boots.after(boots) => End::Failed,
            end = shim.life(stays) => end,
        };
        core.trace(format!("pod {number}: {end:?}"));
        match end {
            End::Done => break,
            End::Kept => {
                site.keep(&shim.sandbox);
                tokio::spawn(shim.stay());
                break;
            }
            End::Failed => core.pass_ms("kubelet", 500, 12_000).await,
        }
    }
    for other in beside {
        let _ = other.await;
    }
}

#[derive(Clone)]
struct Shim {
    site: Arc<Site>,
    sandbox: String,
    pod: String,
}

impl Shim {
    fn new(site: &Arc<Site>, number: u64, attempt: u64) -> Self {
        // Sandboxes of one pod differ late, so that their VMs want the same name.
        let head = 0xabcd_0000 + number;
        let sandbox = format!("{head:08x}{attempt:04x}");
        site.core.meet(&sandbox);
        site.kernel.add_namespace(&PathBuf::from(netns(&sandbox)));
        Self { site: Arc::clone(site), sandbox, pod: format!("pod-{number}") }
    }

    fn fires(&self, fault: Fault) -> bool {
        self.site.core.fires(fault, &self.sandbox)
    }

    async fn call(&self, call: Call, patience: Duration) -> Result<Answer, ()> {
        timeout(patience, self.site.relay.call(&self.sandbox, call)).await.map_err(|_| {
            let (sandbox, core) = (&self.sandbox, &self.site.core);
            core.trace(format!("a call of {sandbox} is given up"));
        })
    }

    async fn life(&self, stays: bool) -> End {
        match self.create().await {
            Ok(true) => {}
            Ok(false) => return self.end(End::Failed).await,
            Err(()) => return End::Failed,
        }
        self.site.core.pass_ms("shim", 0, 400).await;
        if self.fires(Fault::StartNever) {
            return End::Done;
        }
        if !self.start().await {
            return self.end(End::Failed).await;
        }
        self.site.relay.connect_shim(&self.sandbox, true);
        if stays {
            return End::Kept;
        }
        let runs = seconds(self.site.core.dice.amount("runs", 1, 400));
        let closed = timeout(runs, self.until_closed()).await.is_ok();
        self.end(if closed { End::Failed } else { End::Done }).await
    }

    /// Whether it went well; an error is a shim that has died.
    async fn create(&self) -> Result<bool, ()> {
        let create = || Call::Create(request(&self.sandbox, &self.pod));
        if self.fires(Fault::CreateAbandoned) {
            let patience = self.site.core.dice.amount("create-patience", 0, 40);
            let given_up = self.call(create(), Duration::from_millis(patience)).await.is_err();
            if given_up && self.site.core.dice.amount("create-again", 0, 1) == 0 {
                return Err(());
            }
        }
        let repeated = self.site.core.fires_harmlessly(Fault::CreateRepeated);
        let (answer, _) = tokio::join!(self.call(create(), CREATE), async {
            if repeated {
                self.site.core.pass_ms("create-twice", 0, 20).await;
                let _ = self.call(create(), CREATE).await;
            }
        });
        match answer {
            Ok(Some(answer)) => Ok(answer.is_ok()),
            // The relay has gone, and with it the shim.
            Ok(None) => Err(()),
            Err(()) => {
                self.site.core.excuse(&self.sandbox, "CreateVM was given up");
                Ok(false)
            }
        }
    }

    async fn start(&self) -> bool {
        let core = &self.site.core;
        let abandoned = self.fires(Fault::StartAbandoned);
        let early = self.fires(Fault::StopEarly);
        let repeated = core.fires_harmlessly(Fault::StartRepeated);
        let patience = match abandoned {
            true => Duration::from_millis(core.dice.amount("start-patience", 50, 30_000)),
            false => START,
        };
        let started = self.call(Call::Start(Some(START)), patience);
        let again = async {
            if repeated {
                core.pass_ms("start-twice", 0, 5000).await;
                let _ = self.call(Call::Start(Some(START)), START).await;
            }
        };
        let stop = async {
            if early {
                core.pass_ms("stop-early", 0, 20_000).await;
                let _ = self.call(Call::Stop, STOP).await;
            }
        };
        let (answer, (), ()) = tokio::join!(started, again, stop);
        if answer.is_err() {
            core.excuse(&self.sandbox, "StartVM was given up");
        }
        !early && matches!(answer, Ok(Some(Ok(()))))
    }

    /// The node has closed the shim's connections.
    async fn until_closed(&self) {
        let closed = &self.site.relay.closed;
        loop {
            let count = closed.count();
            if !self.site.relay.has(&self.sandbox) {
                return;
            }
            closed.after(count).await;
        }
    }

    /// A pod that runs to the end of the run, if it may.
    async fn stay(self) {
        let boots = self.site.boots.count();
        tokio::select! {
            biased;
            () = self.site.boots.after(boots) => {}
            () = self.until_closed() => {
                self.end(End::Failed).await;
            }
        }
    }

    /// StopVM in one of the ways shims have, or none.
    async fn end(&self, end: End) -> End {
        let core = &self.site.core;
        core.excuse(&self.sandbox, "it was stopped");
        if self.fires(Fault::StopNever) {
            self.gone().await;
            return end;
        }
        if self.fires(Fault::StopThrice) {
            let stop = || self.call(Call::Stop, HASTE);
            let _ = tokio::join!(stop(), stop(), stop());
        } else {
            for _ in 0..3 {
                if self.call(Call::Stop, STOP).await.is_ok() {
                    break;
                }
            }
        }
        self.gone().await;
        if self.fires(Fault::StopLate) {
            core.pass_ms("stop-late", 1000, 200_000).await;
            let _ = self.call(Call::Stop, STOP).await;
        }
        end
    }

    /// The shim's connections close, and the namespace goes.
    async fn gone(&self) {
        self.site.relay.connect_shim(&self.sandbox, false);
        self.site.core.pass_ms("cni", 0, 5000).await;
        self.site.kernel.drop_namespace(&PathBuf::from(netns(&self.sandbox)));
    }
}

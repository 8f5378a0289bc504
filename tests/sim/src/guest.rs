//! What answers, or does not, at the address of a machine.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpod_tunnel::link::tls::ClientTls;
use peerpodd::plan::FollowFile;
use peerpodd::pod::world::{Door, Guest, Pulse, Stage, Undelivered, Unready};
use tokio::time::{Instant, sleep, timeout};

use crate::cloud::Cloud;
use crate::core::{lock, seconds};
use crate::machines::Machine;
use crate::process::Process;

/// The machines' forwarders as one daemon sees them.
#[derive(Clone, Debug)]
pub(crate) struct Machines {
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) process: Arc<Process>,
}

/// How a machine answers now.
enum State {
    Silence,
    Refuses,
    Garbage,
    AgentMissing,
    /// It waits for files that had no room in its user data.
    Waits,
    Hangs,
    Answers,
}

fn state(machine: Option<&Machine>) -> State {
    let now = Instant::now();
    let Some(machine) = machine.filter(|m| m.runs(now)) else { return State::Silence };
    let mood = &machine.mood;
    match (mood.up, mood.answers) {
        (Some(up), _) if now < up => State::Silence,
        (None, _) => State::Silence,
        _ if mood.garbage => State::Garbage,
        (_, Some(at)) if now < at && at - now > seconds(1) => State::Refuses,
        (_, Some(at)) if now < at => State::AgentMissing,
        (_, None) => State::Refuses,
        _ if machine.waits() => State::Waits,
        _ => match mood.hangs {
            Some((from, long)) if now >= from && now < from + long => State::Hangs,
            _ => State::Answers,
        },
    }
}

fn state_at(cloud: &Cloud, address: IpAddr) -> State {
    state(lock(&cloud.state).machines.at(address))
}

/// Whether the agent at that address answers now.
pub(crate) fn answers(cloud: &Cloud, address: IpAddr) -> bool {
    matches!(state_at(cloud, address), State::Answers)
}

impl Machines {
    fn state(&self, address: IpAddr) -> State {
        state_at(&self.cloud, address)
    }
}

fn unready<T>(stage: Stage, reason: &str) -> Result<T, Unready> {
    Err(Unready { stage, reason: reason.to_owned() })
}

#[async_trait]
impl Guest for Machines {
    async fn knock(&self, to: SocketAddr, bound: Duration) -> Result<Box<dyn Door>, Unready> {
        self.process.reach("knock").await;
        let foreign = lock(&self.cloud.state).machines.at(to.ip()).filter(|m| m.foreign).cloned();
        if let Some(machine) = foreign {
            self.cloud.core.breach("I6", format!("{} is knocked at", machine.spec.name));
        }
        match self.state(to.ip()) {
            State::Silence => {
                sleep(bound).await;
                unready(Stage::Unreachable, "silence")
            }
            State::Refuses => unready(Stage::Refused, "RST"),
            _ => Ok(Box::new(Connection { machines: self.clone(), address: to.ip() })),
        }
    }
}

#[derive(Debug)]
struct Connection {
    machines: Machines,
    address: IpAddr,
}

#[async_trait]
impl Door for Connection {
    async fn deliver(
        self: Box<Self>,
        _: Option<&ClientTls>,
        files: &[FollowFile],
        bound: Duration,
    ) -> Result<(), Undelivered> {
        let core = &self.machines.cloud.core;
        core.pass_ms("deliver", 1, 40).await;
        match self.machines.state(self.address) {
            State::Garbage => return Ok(unready(Stage::Tls, "not TLS")?),
            State::Answers | State::Waits => {}
            _ => {
                sleep(bound).await;
                return Ok(unready(Stage::Agent, "not taken")?);
            }
        }
        // It comes, and the word that it came may be lost.
        let took = lock(&self.machines.cloud.state).machines.take_files(self.address, files);
        if let Err(wrong) = took {
            core.breach("I6", wrong);
        }
        if core.dice.amount("delivered, and the word is lost", 0, 7) == 0 {
            return Ok(unready(Stage::Agent, "the session broke")?);
        }
        Ok(())
    }

    async fn enter(
        mut self: Box<Self>,
        _: Option<&ClientTls>,
        bound: Duration,
    ) -> Result<Box<dyn Pulse>, Unready> {
        match self.machines.state(self.address) {
            State::Garbage => return unready(Stage::Tls, "not TLS"),
            State::AgentMissing | State::Waits => return unready(Stage::Agent, "no agent"),
            _ => {}
        }
        match timeout(bound, self.beat()).await {
            Ok(Ok(())) => Ok(self),
            Ok(Err(reason)) => unready(Stage::Agent, &reason),
            Err(_) => unready(Stage::Agent, "no answer"),
        }
    }
}

#[async_trait]
impl Pulse for Connection {
    async fn beat(&mut self) -> Result<(), String> {
        loop {
            match self.machines.state(self.address) {
                State::Answers => return Ok(()),
                State::Hangs | State::Silence => sleep(Duration::from_millis(500)).await,
                _ => return Err("reset".to_owned()),
            }
        }
    }
}

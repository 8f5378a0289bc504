//! VMs, as far as whoever dials them sees.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use peerpod_tunnel::link::tls::ClientTls;
use tokio::time::{Instant, sleep};

use super::lock;
use crate::plan::FollowFile;
use crate::pod::world::{Door, Guest, Pulse, Stage, Undelivered, Unready};

/// All VMs behave alike, as the test says.
#[derive(Debug, Default)]
pub(in crate::pods::tests) struct FakeGuest {
    pub(in crate::pods::tests) mood: Arc<Mutex<Mood>>,
    pub(in crate::pods::tests) knocks: Mutex<Vec<Instant>>,
    /// Files that came and questions to the agent, in order.
    pub(in crate::pods::tests) heard: Arc<Mutex<Vec<String>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::pods::tests) enum Mood {
    #[default]
    Answers,
    /// Accepts and says nothing, on old connections, too.
    Hangs,
    /// Nobody is there.
    Dark,
    Refuses,
    BreaksTls,
    AgentMissing,
    /// Its image is upstream's.
    TakesNoFiles,
}

impl FakeGuest {
    pub(in crate::pods::tests) fn be(&self, mood: Mood) {
        *lock(&self.mood) = mood;
    }
}

#[async_trait]
impl Guest for FakeGuest {
    async fn knock(&self, _: SocketAddr, bound: Duration) -> Result<Box<dyn Door>, Unready> {
        lock(&self.knocks).push(Instant::now());
        let fail = |stage, reason: &str| Err(Unready { stage, reason: reason.to_owned() });
        let mood = *lock(&self.mood);
        match mood {
            Mood::Dark => {
                sleep(bound).await;
                fail(Stage::Unreachable, "silence")
            }
            Mood::Refuses => fail(Stage::Refused, "RST"),
            _ => Ok(Box::new(FakeVm(Arc::clone(&self.mood), Arc::clone(&self.heard)))),
        }
    }
}

#[derive(Debug)]
struct FakeVm(Arc<Mutex<Mood>>, Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Door for FakeVm {
    async fn deliver(
        self: Box<Self>,
        _: Option<&ClientTls>,
        files: &[FollowFile],
        bound: Duration,
    ) -> Result<(), Undelivered> {
        let mood = *lock(&self.0);
        if mood == Mood::TakesNoFiles {
            return Err(Undelivered::Refused("it takes none".to_owned()));
        }
        if mood == Mood::Hangs {
            sleep(bound).await;
            let reason = "not taken".to_owned();
            return Err(Unready { stage: Stage::Agent, reason }.into());
        }
        let heard = files.iter().map(|file| format!("{}: {}", file.path, file.content.expose()));
        lock(&self.1).extend(heard);
        Ok(())
    }

    async fn enter(
        self: Box<Self>,
        _: Option<&ClientTls>,
        bound: Duration,
    ) -> Result<Box<dyn Pulse>, Unready> {
        let mood = *lock(&self.0);
        let fail = |stage, reason: &str| Err(Unready { stage, reason: reason.to_owned() });
        lock(&self.1).push("agent".to_owned());
        match mood {
            Mood::Answers => Ok(self),
            Mood::Hangs => {
                sleep(bound).await;
                fail(Stage::Tls, "no handshake")
            }
            Mood::BreaksTls => fail(Stage::Tls, "bad certificate"),
            _ => fail(Stage::Agent, "no agent"),
        }
    }
}

#[async_trait]
impl Pulse for FakeVm {
    async fn beat(&mut self) -> Result<(), String> {
        let mood = *lock(&self.0);
        match mood {
            Mood::Answers => Ok(()),
            Mood::Hangs | Mood::Dark => std::future::pending().await,
            _ => Err("reset".to_owned()),
        }
    }
}

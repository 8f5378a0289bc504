//! One volume: from what the annotation says of it to its mount point.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podvm::cloud_volumes::{VolumeError, Wanted};
use tokio::time::{Instant, sleep};

use super::cdh::{CdhError, Secure};
use super::hand::Job;
use super::probe::{self, Content};
use super::{Volumes, mounts};

/// Between two looks for a device that is not there.
const LOOK: Duration = Duration::from_millis(100);
/// How long the data hub may take; it asks a key broker far away.
const SECURE: Duration = Duration::from_secs(120);

/// Why a container does not get its volumes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error(transparent)]
    Annotation(#[from] VolumeError),
    #[error("volume {name} (disk {disk:?}, LUN {lun}): no such disk after {waited:?}; {seen}")]
    Absent { name: String, disk: String, lun: u32, waited: Duration, seen: String },
    #[error("volume {name}: {path}: {reason}")]
    Unfit { name: String, path: String, reason: String },
    #[error("volume {name}: {action} {path}: {source}")]
    Step { name: String, action: &'static str, path: String, source: std::io::Error },
    #[error("volume {name}: {source}")]
    Cdh { name: String, source: CdhError },
    #[error("{target} is no mount point after {waited:?}")]
    Target { target: String, waited: Duration },
}

impl Failed {
    /// google.rpc code.
    pub(super) fn code(&self) -> i32 {
        match self {
            Self::Annotation(_) => 3,
            Self::Absent { .. } | Self::Target { .. } => 4,
            Self::Unfit { .. } => 9,
            Self::Step { .. } => 13,
            Self::Cdh { .. } => 14,
        }
    }
}

/// A volume whose disk is there, and where it is to be.
struct Place<'a> {
    volume: &'a Wanted,
    device: PathBuf,
    point: PathBuf,
}

impl Place<'_> {
    fn unfit(&self, reason: impl Into<String>) -> Failed {
        let (name, path) = (self.volume.name.clone(), self.device.display().to_string());
        Failed::Unfit { name, path, reason: reason.into() }
    }

    fn step(&self, action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Failed {
        let (name, path) = (self.volume.name.clone(), path.display().to_string());
        move |source| Failed::Step { name, action, path, source }
    }

    /// Whether it is mounted already.
    fn stands(&self) -> Result<bool, Failed> {
        if mounts::at(&self.point).map_err(self.step("look at", &self.point))?.is_none() {
            return Ok(false);
        }
        let number = mounts::number(&self.device).map_err(self.step("look at", &self.device))?;
        let same = mounts::lies_on(&self.point, number);
        match same.map_err(self.step("look at", &self.point))? {
            true => Ok(true),
            false => Err(self.unfit(format!("{} has another disk", self.point.display()))),
        }
    }

    async fn content(&self) -> Result<Content, Failed> {
        let device = self.device.clone();
        let look = move || match mounts::open_unused(&device) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                let content = probe::probe(&mut mounts::open_shared(&device)?)?;
                // Only these can be mounted twice.
                matches!(content, Content::Ext | Content::Xfs).then_some(content).ok_or(error)
            }
            disk => probe::probe(&mut disk?),
        };
        apart(look).await.map_err(self.step("look at", &self.device))
    }

    async fn attach(&self, fs: &'static str) -> Result<(), Failed> {
        let (device, point) = (self.device.clone(), self.point.clone());
        let attach = move || Ok(mounts::attach(&device, &point, fs)?);
        apart(attach).await.map_err(self.step("mount", &self.device))
    }
}

/// File system calls, away from the runtime's threads; they are done to their end.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(std::io::Error::other(e)))
}

impl Volumes {
    /// Mounts one volume, unless it is; gives its mount point.
    pub(super) async fn mount(&self, volume: &Wanted, left: Duration) -> Result<PathBuf, Failed> {
        let begin = Instant::now();
        let device = self.device(volume, left.min(self.settings.wait)).await?;
        let _one = self.changes.lock().await;
        let point = self.settings.base.join(&volume.name);
        let place = Place { volume, device, point };
        if place.stands()? {
            return Ok(place.point);
        }
        let content = place.content().await?;
        let (name, device) = (&volume.name, place.device.display());
        tracing::info!(volume = %name, %device, ?content, "volume");
        let made = tokio::fs::create_dir_all(&place.point).await;
        made.map_err(place.step("make", &place.point))?;
        self.fill(&place, content, left.saturating_sub(begin.elapsed())).await?;
        if !place.stands()? {
            let shown = place.point.display();
            return Err(place.unfit(format!("nothing of it is mounted at {shown}")));
        }
        if let Some(group) = volume.fs_group {
            let job = Job::Own { point: place.point.clone(), group };
            self.hand(job).await.map_err(|e| place.unfit(e))?;
        }
        Ok(place.point)
    }

    /// Mounts what the disk holds, or is to hold.
    async fn fill(
        &self,
        place: &Place<'_>,
        content: Content,
        left: Duration,
    ) -> Result<(), Failed> {
        let volume = place.volume;
        if let Some(key) = &volume.key {
            return match content {
                Content::Luks | Content::Empty => self.secure(place, key, content, left).await,
                found => Err(place.unfit(format!("it is to be encrypted, and holds {found:?}"))),
            };
        }
        let refuse = |why| Err(place.unfit(why));
        match content {
            Content::Ext => place.attach("ext4").await,
            Content::Xfs => place.attach("xfs").await,
            Content::Luks => refuse("it is encrypted, and no key is named"),
            Content::Unknown => refuse("it holds neither ext nor xfs, and is not empty either"),
            Content::Empty if self.settings.confidential => {
                refuse("it is empty, and nothing that was measured asks for a file system on it")
            }
            Content::Empty => {
                let job = Job::Make { device: place.device.clone(), fs: volume.fs };
                self.hand(job).await.map_err(|e| place.unfit(e))?;
                tracing::info!(volume = %volume.name, fs = volume.fs.as_str(), "formatted");
                place.attach(volume.fs.as_str()).await
            }
        }
    }

    async fn secure(
        &self,
        place: &Place<'_>,
        key: &str,
        content: Content,
        left: Duration,
    ) -> Result<(), Failed> {
        let secure = Secure {
            name: &place.volume.name,
            device: &place.device,
            point: &place.point,
            fs: place.volume.fs.as_str(),
            key,
            encrypted: content == Content::Luks,
        };
        let done = secure.mount(&self.settings.cdh, left.min(SECURE)).await;
        done.map_err(|source| Failed::Cdh { name: place.volume.name.clone(), source })
    }

    /// Waits for a disk.
    async fn device(&self, volume: &Wanted, limit: Duration) -> Result<PathBuf, Failed> {
        let begin = Instant::now();
        let name = || volume.name.clone();
        loop {
            let found = self.finder.look(&volume.disk, volume.lun);
            let several =
                |reason| Failed::Unfit { name: name(), path: volume.disk.clone(), reason };
            match found.map_err(several)? {
                Some(device) if mounts::number(&device).is_ok() => return Ok(device),
                _ if begin.elapsed() + LOOK > limit => {
                    return Err(Failed::Absent {
                        name: name(),
                        disk: volume.disk.clone(),
                        lun: volume.lun,
                        waited: limit,
                        seen: self.finder.seen(),
                    });
                }
                _ => sleep(LOOK).await,
            }
        }
    }
}

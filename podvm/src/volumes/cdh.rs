//! Encrypted volumes: the confidential data hub fetches the key, by attestation, opens the disk and mounts
//! what is in it. One call of ttrpc (kata.md 11, compat.md 14).

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use peerpod_tunnel::link::call::{CallError, Caller};
use peerpod_tunnel::link::wire;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::hand::MAPPER;

const SERVICE: &str = "api.SecureMountService";
const METHOD: &str = "SecureMount";
/// Fields of SecureMountRequest; `flags`, 3, are never set.
const VOLUME_TYPE: u32 = 1;
const OPTIONS: u32 = 2;
const MOUNT_POINT: u32 = 4;
/// How long the data hub may take to come up, and the time between two looks.
const COMES: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(200);

/// Why there is no volume.
#[derive(Debug, thiserror::Error)]
pub(super) enum CdhError {
    #[error("no confidential data hub on {socket}: {source}")]
    Absent { socket: String, source: std::io::Error },
    #[error("confidential data hub: {0}")]
    Call(#[from] CallError),
    #[error("confidential data hub: no answer within {0:?}")]
    Slow(Duration),
}

/// What is to be mounted.
#[derive(Debug)]
pub(super) struct Secure<'a> {
    pub(super) name: &'a str,
    pub(super) device: &'a Path,
    pub(super) point: &'a Path,
    pub(super) fs: &'static str,
    pub(super) key: &'a str,
    /// The disk has been encrypted before; an empty one gets its encryption now.
    pub(super) encrypted: bool,
}

impl Secure<'_> {
    fn message(&self) -> Bytes {
        let key = self.key.trim_start_matches("kbs:///");
        let options = [
            ("devicePath", self.device.display().to_string()),
            ("sourceType", if self.encrypted { "encrypted" } else { "empty" }.to_owned()),
            ("targetType", "fileSystem".to_owned()),
            ("encryptionType", "luks2".to_owned()),
            ("filesystemType", self.fs.to_owned()),
            ("key", format!("kbs:///{key}")),
            ("mapperName", format!("{MAPPER}{}", self.name)),
        ];
        let mut message = Vec::new();
        wire::put(&mut message, VOLUME_TYPE, b"block-device");
        for (key, value) in options {
            let mut entry = Vec::new();
            wire::put(&mut entry, 1, key.as_bytes());
            wire::put(&mut entry, 2, value.as_bytes());
            wire::put(&mut message, OPTIONS, &entry);
        }
        wire::put(&mut message, MOUNT_POINT, self.point.as_os_str().as_encoded_bytes());
        message.into()
    }

    /// Has it mounted, within `limit`.
    pub(super) async fn mount(&self, socket: &Path, limit: Duration) -> Result<(), CdhError> {
        let mut caller = Caller::new(connect(socket, limit.min(COMES)).await?);
        let call = caller.call(SERVICE, METHOD, self.message());
        timeout(limit, call).await.map_err(|_| CdhError::Slow(limit))??;
        Ok(())
    }
}

async fn connect(socket: &Path, limit: Duration) -> Result<UnixStream, CdhError> {
    let end = Instant::now() + limit;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(source) if Instant::now() + AGAIN > end => {
                return Err(CdhError::Absent { socket: socket.display().to_string(), source });
            }
            Err(_) => sleep(AGAIN).await,
        }
    }
}

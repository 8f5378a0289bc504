//! A byte-level stand-in for kata-agent: keeps what it is sent, answers every request.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use peerpod_tunnel::link::frame::{Frame, FrameReader, Kind, Request, Response};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

#[derive(Clone, Default)]
pub(crate) struct Agent {
    seen: Arc<Mutex<Vec<Vec<Frame>>>>,
}

impl Agent {
    /// Listens on `socket`, whose directory it makes.
    pub(crate) fn start(socket: &Path) -> Self {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let agent = Self::default();
        tokio::spawn(agent.clone().accept(listener, socket.to_owned()));
        agent
    }

    async fn accept(self, listener: UnixListener, socket: PathBuf) {
        while let Ok((stream, _)) = listener.accept().await {
            let number = {
                let mut seen = self.seen.lock().unwrap();
                seen.push(Vec::new());
                seen.len() - 1
            };
            tokio::spawn(self.clone().serve(stream, number, socket.clone()));
        }
    }

    async fn serve(self, stream: UnixStream, number: usize, socket: PathBuf) {
        let (from, mut to) = stream.into_split();
        let mut reader = FrameReader::new(from, None);
        while let Ok(Some(frame)) = reader.next().await {
            self.seen.lock().unwrap()[number].push(frame.clone());
            let method = Request::parse(&frame.payload).map(|r| r.method).unwrap_or_default();
            match method.as_str() {
                "CreateSandbox" => std::fs::remove_dir_all(socket.parent().unwrap()).unwrap(),
                // What a real agent does at its end.
                "DestroySandbox" => return,
                _ => {}
            }
            if frame.kind == Kind::Request {
                let answer = Response { payload: frame.payload, ..Response::default() };
                answer.frame(frame.stream).write(&mut to).await.unwrap();
            }
        }
        let _ = to.shutdown().await;
    }

    /// How often it was called up.
    pub(crate) fn connections(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// All frames of all connections, in the order of the connections.
    pub(crate) fn frames(&self) -> Vec<Frame> {
        self.seen.lock().unwrap().concat()
    }

    /// The frames as bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = BytesMut::new();
        self.frames().iter().for_each(|f| f.put(&mut out));
        out.to_vec()
    }
}

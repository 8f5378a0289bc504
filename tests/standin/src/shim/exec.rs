//! A process in a container, as the shim pumps its bytes.

use bytes::Bytes;

use super::AgentClient;
use super::rpc::CallError;
use crate::messages::agent::{
    Empty, ProcessRequest, ReadStreamRequest, ReadStreamResponse, WriteStreamRequest,
    WriteStreamResponse,
};

/// Bytes asked for by one read, as the shims do.
const READ: u32 = 32 << 10;

/// How a process ended and all it has written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Exit status.
    pub status: i32,
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// All of stderr.
    pub stderr: Vec<u8>,
}

/// A process.
#[derive(Clone, Debug)]
pub struct Exec {
    agent: AgentClient,
    container: String,
    exec: String,
}

type Result<T> = std::result::Result<T, CallError>;

impl Exec {
    pub(super) fn new(agent: AgentClient, container: &str, exec: &str) -> Self {
        Self { agent, container: container.to_owned(), exec: exec.to_owned() }
    }

    /// What comes next on stdout; empty at its end.
    ///
    /// # Errors
    /// By [`CallError`], as all calls here.
    pub async fn read_stdout(&self) -> Result<Bytes> {
        self.read("ReadStdout", READ).await
    }

    /// What comes next on stderr; empty at its end.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn read_stderr(&self) -> Result<Bytes> {
        self.read("ReadStderr", READ).await
    }

    /// At most `length` bytes by the method named.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn read(&self, method: &str, length: u32) -> Result<Bytes> {
        let request = ReadStreamRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            len: length,
        };
        let answer: ReadStreamResponse = self.agent.call(method, &request).await?;
        Ok(answer.data)
    }

    /// Writes to stdin; returns how much was taken. Nothing is the end of stdin.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn write_stdin(&self, data: impl Into<Bytes>) -> Result<usize> {
        let request = WriteStreamRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            data: data.into(),
        };
        let answer: WriteStreamResponse = self.agent.call("WriteStdin", &request).await?;
        Ok(answer.len as usize)
    }

    /// CloseStdin.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn close_stdin(&self) -> Result<()> {
        self.agent.call::<_, Empty>("CloseStdin", &self.request()).await.map(drop)
    }

    /// TtyWinResize (its size is not looked at).
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn resize(&self) -> Result<()> {
        self.agent.call::<_, Empty>("TtyWinResize", &self.request()).await.map(drop)
    }

    /// The exit status, once it has ended.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn wait(&self) -> Result<i32> {
        self.agent.wait(&self.container, &self.exec).await
    }

    /// SignalProcess.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn signal(&self, signal: u32) -> Result<()> {
        self.agent.signal(&self.container, &self.exec, signal).await
    }

    /// All of stdout, stderr and the exit status; the reads come first, since a process that was
    /// waited for can no longer be read.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn output(&self) -> Result<Output> {
        let (stdout, stderr) = tokio::join!(self.all("ReadStdout"), self.all("ReadStderr"));
        let (stdout, stderr) = (stdout?, stderr?);
        Ok(Output { status: self.wait().await?, stdout, stderr })
    }

    /// The next bytes up to and including a newline.
    #[allow(clippy::missing_errors_doc, reason = "said once above")]
    pub async fn first_line(&self) -> Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let byte = self.read("ReadStdout", 1).await?;
            if byte.is_empty() {
                break;
            }
            line.extend_from_slice(&byte);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    async fn all(&self, method: &str) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let data = self.read(method, READ).await?;
            if data.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(&data);
        }
    }

    fn request(&self) -> ProcessRequest {
        ProcessRequest { container_id: self.container.clone(), exec_id: self.exec.clone() }
    }
}

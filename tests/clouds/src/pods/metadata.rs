//! The metadata services of the clouds, as far as they give user data, for all machines of a lab: who asks
//! is known by the address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

/// The machines' network.
pub(super) const NETWORK: &str = "172.31.0.0/24";
/// Its first address, which is the worker's.
pub(super) const ADDRESS: &str = "172.31.0.1";
/// Where the service listens; the clouds' own address would need a route in each machine.
pub(super) const PORT: u16 = 8169;
/// A machine may ask before its double has told us its address.
const EARLY: (u32, Duration) = (50, Duration::from_millis(10));
const TOKEN: &str = "a-token-of-the-double";
/// No request of podvm is longer.
const LONGEST: usize = 4096;

/// Whose service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// IMDSv2: a token first.
    Aws,
    /// User data as they were sent, in base64.
    Azure,
    /// An attribute as it was sent.
    Gcp,
}

impl Flavour {
    /// As podvm's `--source` has it.
    pub fn source(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Azure => "azure",
            Self::Gcp => "gcp",
        }
    }

    /// Whether these are the words by which user data are asked for.
    fn is_asked(self, request: &Request) -> bool {
        let (path, header) = match self {
            Self::Aws => ("/latest/user-data", ("x-aws-ec2-metadata-token", TOKEN)),
            Self::Azure => (
                "/metadata/instance/compute/userData?api-version=2021-01-01&format=text",
                ("metadata", "true"),
            ),
            Self::Gcp => {
                ("/computeMetadata/v1/instance/attributes/user-data", ("metadata-flavor", "Google"))
            }
        };
        request.line == format!("GET {path} HTTP/1.1") && request.has(header)
    }

    fn answer(self, request: &Request, user_data: Option<String>) -> (u16, String) {
        let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "60");
        let for_token = request.line == "PUT /latest/api/token HTTP/1.1" && request.has(ttl);
        match user_data {
            _ if self == Self::Aws && for_token => (200, TOKEN.to_owned()),
            _ if !self.is_asked(request) => (400, "not asked as this cloud wants it".to_owned()),
            Some(user_data) => (200, user_data),
            None => (404, "no user data".to_owned()),
        }
    }
}

/// First line and headers, these in lower case.
#[derive(Debug)]
struct Request {
    line: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn of(head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let line = lines.next()?.to_owned();
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        };
        Some(Self { line, headers: lines.filter_map(header).collect() })
    }

    fn has(&self, (name, value): (&str, &str)) -> bool {
        self.headers.iter().any(|(n, v)| n == name && v == value)
    }
}

/// Listens on every address and answers from then on. `user_data` says what a machine has.
pub(super) async fn serve(
    flavour: Flavour,
    user_data: impl Fn(IpAddr) -> Option<String> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT);
    let listener = TcpListener::bind(at).await.context("bind the metadata service")?;
    let user_data = Arc::new(user_data);
    tokio::spawn(async move {
        while let Ok((stream, from)) = listener.accept().await {
            let user_data = Arc::clone(&user_data);
            tokio::spawn(async move {
                // Whoever breaks off asks again.
                let _ = exchange(flavour, stream, from.ip(), &*user_data).await;
            });
        }
    });
    Ok(())
}

async fn exchange(
    flavour: Flavour,
    mut stream: TcpStream,
    from: IpAddr,
    user_data: &(dyn Fn(IpAddr) -> Option<String> + Send + Sync),
) -> anyhow::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut piece = [0; 1024];
        let n = stream.read(&mut piece).await?;
        head.extend_from_slice(piece.get(..n).unwrap_or_default());
        anyhow::ensure!(n > 0 && head.len() < LONGEST, "no request");
    }
    let request = Request::of(&String::from_utf8_lossy(&head)).context("no request")?;
    let mut found = user_data(from);
    for _ in 0..EARLY.0 {
        if found.is_some() {
            break;
        }
        sleep(EARLY.1).await;
        found = user_data(from);
    }
    let (status, body) = flavour.answer(&request, found);
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(flavour: Flavour, text: &str) -> u16 {
        let request = Request::of(text).expect("a request");
        flavour.answer(&request, Some("data".to_owned())).0
    }

    #[test]
    fn user_data_are_given_only_to_who_asks_as_that_cloud_wants_it() {
        let aws =
            "GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: a-token-of-the-double";
        assert_eq!(ask(Flavour::Aws, aws), 200);
        assert_eq!(ask(Flavour::Aws, "GET /latest/user-data HTTP/1.1"), 400);
        assert_eq!(ask(Flavour::Azure, aws), 400);
        let google = "GET /computeMetadata/v1/instance/attributes/user-data HTTP/1.1";
        assert_eq!(ask(Flavour::Gcp, &format!("{google}\r\nMetadata-Flavor: Google")), 200);
        assert_eq!(ask(Flavour::Gcp, google), 400);
    }
}

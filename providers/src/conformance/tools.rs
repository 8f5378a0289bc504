//! What the rows are written with.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Double, Violation};
use crate::{Deletion, Error, Resource, Token, UserData, Vm, VmName, VmRef, VmSpec, tags};

/// Stands in the user data; must be seen nowhere.
pub(super) const SECRET: &str = "conformance-private-key";

/// A broken promise, unless.
pub(super) fn ensure(kept: bool, otherwise: impl FnOnce() -> String) -> Result<(), Violation> {
    if kept { Ok(()) } else { Err(Violation(otherwise())) }
}

/// A call that must not fail.
pub(super) fn works<T>(what: &str, result: Result<T, Error>) -> Result<T, Violation> {
    result.map_err(|e| Violation(format!("{what} fails: {}", chain(&e))))
}

/// A call that must fail.
pub(super) fn fails<T: std::fmt::Debug>(
    what: &str,
    result: Result<T, Error>,
) -> Result<Error, Violation> {
    match result {
        Ok(value) => Err(Violation(format!("{what} succeeds: {value:?}"))),
        Err(e) => Ok(e),
    }
}

/// An error with all its causes.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        text.push_str(&format!(": {e}"));
        cause = e.source();
    }
    text
}

/// The n-th VM of a row.
pub(super) fn spec(double: &dyn Double, row: &str, n: usize) -> VmSpec {
    // As long as those of the kubelet.
    let sandbox = Token::of("conformance", row, "", u32::try_from(n).unwrap_or(u32::MAX)).hex();
    let name = VmName::first_form(&format!("conform-{row}-{n}"), &sandbox);
    VmSpec {
        tags: BTreeMap::from([
            (tags::INSTALLATION.to_owned(), double.installation().to_owned()),
            (tags::SANDBOX.to_owned(), sandbox.clone()),
            (tags::POD.to_owned(), format!("{row}-{n}")),
        ]),
        user_data: UserData(format!("#cloud-config\n# {SECRET}\n")),
        template: double.template(),
        ..VmSpec::new(name, sandbox)
    }
}

/// A reference as somebody has it who never learnt the native id.
pub(super) fn ref_to(spec: &VmSpec) -> VmRef {
    VmRef { name: spec.name.clone(), sandbox: spec.sandbox.clone(), native_id: None }
}

pub(super) async fn create(double: &dyn Double, spec: &VmSpec) -> Result<Vm, Error> {
    double.provider().create(spec, &double.candidate()).await
}

/// What a list says of one sandbox.
pub(super) async fn listed(double: &dyn Double, spec: &VmSpec) -> Result<Vec<Resource>, Violation> {
    let all = works("list", double.provider().list().await)?;
    Ok(all.into_iter().filter(|r| r.vm.sandbox == spec.sandbox).collect())
}

/// Deletes until it is gone.
pub(super) async fn delete(double: &dyn Double, vm: &VmRef) -> Result<(), Violation> {
    let end = Instant::now() + double.patience();
    let mut wait = Duration::from_millis(5);
    loop {
        match works("delete", double.provider().delete(vm).await)? {
            Deletion::Gone => return Ok(()),
            Deletion::Accepted if Instant::now() >= end => {
                return Err(Violation(format!("{} is not gone in time", vm.name)));
            }
            Deletion::Accepted => sleep(wait).await,
        }
        wait = (wait * 2).min(Duration::from_secs(2));
    }
}

/// Deletes and looks that a list does not show it any more.
pub(super) async fn delete_and_look(double: &dyn Double, spec: &VmSpec) -> Result<(), Violation> {
    delete(double, &ref_to(spec)).await?;
    let left = listed(double, spec).await?;
    ensure(left.is_empty(), || format!("after delete was Gone a list still shows {left:?}"))
}

/// Polls a future until it has been pending that often, then drops it.
pub(super) struct DropAfter<'a, T> {
    call: Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    left: usize,
}

impl<'a, T> DropAfter<'a, T> {
    pub(super) fn new(call: impl Future<Output = T> + Send + 'a, pendings: usize) -> Self {
        Self { call: Box::pin(call), left: pendings }
    }
}

impl<T> Future for DropAfter<'_, T> {
    /// `None`: dropped before it was ready.
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        match self.call.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if self.left <= 1 => Poll::Ready(None),
            Poll::Pending => {
                self.left -= 1;
                Poll::Pending
            }
        }
    }
}

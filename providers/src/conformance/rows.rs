//! The promises, one function each. A row that a double cannot put to the test says so.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::tools::{
    DropAfter, SECRET, chain, create, delete, delete_and_look, ensure, fails, listed, ref_to, spec,
    works,
};
use super::{Double, Injection, Operation, Outcome, Violation};
use crate::{Deletion, Error, Kind, ResourceKind, UserData, VmRef, VmSpec, tags};

type Result<T = Outcome, E = Violation> = std::result::Result<T, E>;

/// create returns when the VM has an address, and a list shows the VM.
pub(super) async fn create_gives_an_address(double: &dyn Double) -> Result {
    let spec = spec(double, "address", 0);
    let vm = works("create", create(double, &spec).await)?;
    let address = vm.addresses.first();
    ensure(address.is_some_and(|a| !a.is_unspecified()), || format!("no address: {vm:?}"))?;
    ensure(vm.name == spec.name, || format!("asked for {}, made {}", spec.name, vm.name))?;
    ensure(!vm.native_id.is_empty(), || "the native id is empty".to_owned())?;
    let seen = listed(double, &spec).await?;
    let runs = seen.iter().any(|r| r.kind == ResourceKind::Vm && r.running != Some(false));
    ensure(runs, || format!("no running VM in the list: {seen:?}"))?;
    delete_and_look(double, &spec).await?;
    Ok(Outcome::Kept)
}

/// The same call again gives the same VM.
pub(super) async fn a_replay_gives_the_same_vm(double: &dyn Double) -> Result {
    let spec = spec(double, "replay", 0);
    let first = works("create", create(double, &spec).await)?;
    let second = works("the same create again", create(double, &spec).await)?;
    ensure(first == second, || format!("{first:?} is not {second:?}"))?;
    one_vm(double, &spec).await?;
    delete_and_look(double, &spec).await?;
    Ok(Outcome::Kept)
}

/// A create whose reply was lost is resolved by the same create again.
pub(super) async fn a_lost_reply_leaves_one_vm(double: &dyn Double) -> Result {
    let spec = spec(double, "lost", 0);
    if !double.inject(Injection::LostReply) {
        return Ok(Outcome::Untested);
    }
    let error = fails("create without a reply", create(double, &spec).await)?;
    ensure(error.kind == Kind::Unavailable, || format!("a lost reply is {:?}", error.kind))?;
    works("the same create again", create(double, &spec).await)?;
    one_vm(double, &spec).await?;
    delete_and_look(double, &spec).await?;
    Ok(Outcome::Kept)
}

async fn one_vm(double: &dyn Double, spec: &VmSpec) -> Result<()> {
    let seen = listed(double, spec).await?;
    let vms = seen.iter().filter(|r| r.kind == ResourceKind::Vm).count();
    ensure(vms == 1, || format!("{vms} VMs of one sandbox: {seen:?}"))
}

/// A VM of another sandbox is neither taken over nor deleted, whatever its name.
pub(super) async fn a_foreign_name_is_not_adopted(double: &dyn Double) -> Result {
    let theirs = spec(double, "foreign", 0);
    let mut ours = spec(double, "foreign", 1);
    ours.name = theirs.name.clone();
    works("create", create(double, &theirs).await)?;
    let error = fails("create under a foreign VM's name", create(double, &ours).await)?;
    ensure(error.kind == Kind::Invalid, || format!("a foreign VM is {:?}", error.kind))?;
    delete(double, &ref_to(&ours)).await?;
    one_vm(double, &theirs).await?;
    delete_and_look(double, &theirs).await?;
    Ok(Outcome::Kept)
}

/// What is gone is Gone, as often as one asks.
pub(super) async fn delete_twice_is_gone(double: &dyn Double) -> Result {
    let spec = spec(double, "twice", 0);
    let vm = works("create", create(double, &spec).await)?;
    let known = VmRef { native_id: Some(vm.native_id), ..ref_to(&spec) };
    delete(double, &known).await?;
    let again = works("delete again", double.provider().delete(&known).await)?;
    ensure(again == Deletion::Gone, || format!("deleted again, it is {again:?}"))?;
    ensure(listed(double, &spec).await?.is_empty(), || "a list still shows it".to_owned())?;
    Ok(Outcome::Kept)
}

/// The name is enough.
pub(super) async fn delete_needs_no_native_id(double: &dyn Double) -> Result {
    let spec = spec(double, "no-id", 0);
    works("create", create(double, &spec).await)?;
    delete_and_look(double, &spec).await?;
    Ok(Outcome::Kept)
}

/// What never was is Gone.
pub(super) async fn delete_of_unknown_is_gone(double: &dyn Double) -> Result {
    let never = ref_to(&spec(double, "never", 0));
    let wrong_id = VmRef { native_id: Some("i-0000000000000000".to_owned()), ..never.clone() };
    for vm in [never, wrong_id] {
        let gone = works("delete of what never was", double.provider().delete(&vm).await)?;
        ensure(gone == Deletion::Gone, || format!("what never was is {gone:?}"))?;
    }
    Ok(Outcome::Kept)
}

/// Parts of a VM that was not finished are listed and deleted like a VM.
pub(super) async fn delete_takes_parts_too(double: &dyn Double) -> Result {
    let spec = spec(double, "parts", 0);
    if !double.inject(Injection::Partial) {
        return Ok(Outcome::Untested);
    }
    fails("a create that stops halfway", create(double, &spec).await)?;
    delete_and_look(double, &spec).await?;
    Ok(Outcome::Kept)
}

/// A list has every VM of ours once, with its tags, over all pages, and none of anybody else's.
pub(super) async fn a_list_is_complete(double: &dyn Double) -> Result {
    let mut specs: Vec<VmSpec> = (0..=2 * double.page()).map(|n| spec(double, "list", n)).collect();
    let mut foreign = spec(double, "list-foreign", 0);
    foreign.tags.insert(tags::INSTALLATION.to_owned(), "somebody-else".to_owned());
    specs.push(foreign.clone());
    for spec in &specs {
        works("create", create(double, spec).await)?;
    }
    let all = works("list", double.provider().list().await)?;
    for spec in specs.iter().filter(|s| **s != foreign) {
        let seen: Vec<_> = all.iter().filter(|r| r.vm.name == spec.name).collect();
        let vms = seen.iter().filter(|r| r.kind == ResourceKind::Vm).count();
        ensure(vms == 1, || format!("{} is {vms} times in the list", spec.name))?;
        for resource in seen {
            let whose = &resource.vm.sandbox;
            ensure(*whose == spec.sandbox, || format!("{} is {whose}'s", spec.name))?;
            let tag = resource.tags.get(tags::INSTALLATION).map(String::as_str);
            ensure(tag == Some(double.installation()), || format!("wrong tags: {resource:?}"))?;
        }
    }
    let theirs = all.iter().any(|r| r.vm.name == foreign.name);
    ensure(!theirs, || "a list shows the VM of another installation".to_owned())?;
    for spec in &specs {
        delete_and_look(double, spec).await?;
    }
    Ok(Outcome::Kept)
}

/// A list that could not be completed is no list.
pub(super) async fn a_broken_list_is_an_error(double: &dyn Double) -> Result {
    let specs: Vec<VmSpec> = (0..=double.page()).map(|n| spec(double, "broken", n)).collect();
    for spec in &specs {
        works("create", create(double, spec).await)?;
    }
    let tested = double.inject(Injection::BrokenList);
    let list = if tested { Some(double.provider().list().await) } else { None };
    for spec in &specs {
        delete(double, &ref_to(spec)).await?;
    }
    match list {
        Some(list) => fails("a list that breaks in the middle", list).map(|_| Outcome::Kept),
        None => Ok(Outcome::Untested),
    }
}

/// Wherever a create is dropped, a delete afterwards leaves nothing.
pub(super) async fn a_dropped_create_is_not_lost(double: &dyn Double) -> Result {
    for pendings in 1..=16 {
        let spec = spec(double, "dropped", pendings);
        let ready = DropAfter::new(create(double, &spec), pendings).await.is_some();
        delete(double, &ref_to(&spec)).await?;
        sleep(double.lag()).await;
        let left = listed(double, &spec).await?;
        ensure(left.is_empty(), || {
            format!("dropped at await {pendings} and deleted, there is still {left:?}")
        })?;
        if ready {
            break;
        }
    }
    Ok(Outcome::Kept)
}

/// A caller decides by the kind, so it must arrive; and a create that failed leaves nothing.
pub(super) async fn errors_keep_their_kind(double: &dyn Double) -> Result {
    let spec = spec(double, "kinds", 0);
    let mut tested = false;
    for kind in [
        Kind::Denied,
        Kind::Invalid,
        Kind::Quota,
        Kind::Capacity,
        Kind::Throttled(Some(Duration::from_secs(7))),
        Kind::Unavailable,
        Kind::Other,
    ] {
        for operation in [Operation::Create, Operation::Delete, Operation::List] {
            if !double.inject(Injection::Fail(operation, kind)) {
                continue;
            }
            tested = true;
            let error =
                fails("a call that the cloud refuses", call(double, operation, &spec).await)?;
            let got = error.kind;
            ensure(got == kind, || format!("{operation:?}: {kind:?} arrives as {got:?}"))?;
        }
    }
    delete_and_look(double, &spec).await?;
    Ok(if tested { Outcome::Kept } else { Outcome::Untested })
}

async fn call(
    double: &dyn Double,
    operation: Operation,
    spec: &VmSpec,
) -> std::result::Result<(), Error> {
    match operation {
        Operation::Check => double.provider().check().await.map(drop),
        Operation::Create => create(double, spec).await.map(drop),
        Operation::Delete => double.provider().delete(&ref_to(spec)).await.map(drop),
        Operation::List => double.provider().list().await.map(drop),
    }
}

/// After a throttle nothing is asked for as long as the cloud says.
pub(super) async fn a_throttle_is_obeyed(double: &dyn Double) -> Result {
    let spec = spec(double, "throttle", 0);
    let pause = Duration::from_secs(1);
    let throttled = Injection::Fail(Operation::Create, Kind::Throttled(Some(pause)));
    if !double.budgets() || !double.inject(throttled) {
        return Ok(Outcome::Untested);
    }
    fails("a create that is throttled", create(double, &spec).await)?;
    let begin = Instant::now();
    works("the same create again", create(double, &spec).await)?;
    let waited = begin.elapsed();
    ensure(waited >= pause.mul_f32(0.9), || {
        format!("{pause:?} were asked for, waited {waited:?}")
    })?;
    delete_and_look(double, &spec).await?;
    Ok(Outcome::Kept)
}

/// A volume that cannot be attached fails the create; nothing stays, and the volume can be used.
pub(super) async fn a_volumes_failure_leaves_nothing(double: &dyn Double) -> Result {
    let (mut spec, volume) = (spec(double, "volume", 0), double.volume());
    let Some(volume) = volume.filter(|_| double.inject(Injection::VolumeFails)) else {
        return Ok(Outcome::Untested);
    };
    spec.volumes = vec![volume];
    fails("create with a volume that cannot be attached", create(double, &spec).await)?;
    delete_and_look(double, &spec).await?;
    let mut next = self::spec(double, "volume", 1);
    next.volumes = spec.volumes;
    works("create with the same volume", create(double, &next).await)?;
    delete_and_look(double, &next).await?;
    Ok(Outcome::Kept)
}

/// A VM that somebody has stopped is not told as running.
pub(super) async fn a_stopped_vm_is_told(double: &dyn Double) -> Result {
    let spec = spec(double, "stopped", 0);
    works("create", create(double, &spec).await)?;
    let stopped = double.stop(&ref_to(&spec));
    let seen = listed(double, &spec).await?;
    let running = seen.iter().any(|r| r.kind == ResourceKind::Vm && r.running != Some(false));
    delete_and_look(double, &spec).await?;
    if !stopped {
        return Ok(Outcome::Untested);
    }
    ensure(!running, || format!("a stopped VM is told as running: {seen:?}"))?;
    Ok(Outcome::Kept)
}

/// Whatever pods, namespaces and nodes are called, the cloud takes it.
pub(super) async fn odd_names_break_no_create(double: &dyn Double) -> Result {
    let mut spec = spec(double, "odd", 0);
    let long = format!("Odd.Name/<&>%\\?ä_{}", "x".repeat(300));
    for key in [tags::POD, tags::NAMESPACE, tags::NODE] {
        spec.tags.insert(key.to_owned(), long.clone());
    }
    works("create", create(double, &spec).await)?;
    one_vm(double, &spec).await?;
    delete_and_look(double, &spec).await?;
    odd_labels(double).await
}

/// As many cost tags as there is room for, from labels that are anything but tags: all of them are taken,
/// and stand on the VM.
async fn odd_labels(double: &dyn Double) -> Result {
    let mut spec = spec(double, "labels", 0);
    let room = works("check", double.provider().check().await)?.tags;
    let (text, mut cost) = ("Odd.Label/<&>%\\?ä_ ", Vec::new());
    let odd =
        ["aws:x", "Azure.x", "goog-x", "Name", "name", "1", "peerpodd-sandbox"].map(str::to_owned);
    let long = (0..3).map(|n| format!("Long{n}/{}", text.repeat(40)));
    let many = (0..70).map(|n| format!("{n}.K{n}/x"));
    for key in odd.into_iter().chain(long).chain(many) {
        // Whatever there is no room for is left out.
        cost.extend(room.add(&mut spec.tags, &key, &key));
    }
    works("create with odd labels", create(double, &spec).await)?;
    let vms = listed(double, &spec).await?.into_iter().filter(|r| r.kind == ResourceKind::Vm);
    let bare = vms.filter(|vm| cost.iter().any(|key| vm.tags.get(key) != spec.tags.get(key)));
    let bare: Vec<_> = bare.collect();
    delete_and_look(double, &spec).await?;
    ensure(cost.len() > 9 && bare.is_empty(), || format!("of {cost:?} not all are on {bare:?}"))?;
    Ok(Outcome::Kept)
}

/// Too much user data is refused before anything is made, with both numbers.
pub(super) async fn too_much_user_data_is_named(double: &dyn Double) -> Result {
    let Some(limit) = double.user_data_limit() else {
        return Ok(Outcome::Untested);
    };
    let mut spec = spec(double, "limit", 0);
    let bytes = (limit.size / 2..).find(|bytes| limit.counted(*bytes) > limit.size).unwrap_or(0);
    spec.user_data = UserData(SECRET.chars().cycle().take(bytes).collect());
    let error = fails("create with too much user data", create(double, &spec).await)?;
    ensure(error.kind == Kind::Invalid, || format!("too much user data is {:?}", error.kind))?;
    let text = error.to_string();
    let numbers = [limit.counted(bytes), limit.size];
    let named = numbers.iter().all(|number| text.contains(&number.to_string()));
    ensure(named, || format!("size and limit are not in {text:?}"))?;
    let left = listed(double, &spec).await?;
    ensure(left.is_empty(), || format!("refused, and yet made: {left:?}"))?;
    Ok(Outcome::Kept)
}

/// User data are in no debug output and in no error.
pub(super) async fn secrets_do_not_show(double: &dyn Double) -> Result {
    let ours = spec(double, "secret", 0);
    let vm = works("create", create(double, &ours).await)?;
    let list = works("list", double.provider().list().await)?;
    let mut seen = format!("{ours:?} {vm:?} {list:?} {:?}", double.provider());
    let mut foreign = spec(double, "secret", 1);
    foreign.name = ours.name.clone();
    let mut large = spec(double, "secret", 2);
    let limit = double.user_data_limit().map_or(0, |limit| limit.size);
    large.user_data = UserData(SECRET.repeat(limit / 8 + 1));
    for spec in [&foreign, &large] {
        if let Err(e) = create(double, spec).await {
            seen.push_str(&format!("{} {e:?}", chain(&e)));
        }
    }
    // Where names are nobody's alone, the other one was made, too.
    for spec in [&ours, &foreign, &large] {
        delete_and_look(double, spec).await?;
    }
    let shown = seen.split_once(SECRET).map(|(before, _)| before);
    ensure(shown.is_none(), || {
        let before: Vec<char> = shown.unwrap_or_default().chars().collect();
        let near: String = before.iter().skip(before.len().saturating_sub(60)).collect();
        format!("user data show after {near:?}")
    })?;
    Ok(Outcome::Kept)
}

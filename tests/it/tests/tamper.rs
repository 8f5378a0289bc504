//! A filter of a running pod that somebody else removes or alters: the daemon is told by the kernel, puts
//! it back and says so.
#![allow(clippy::expect_used, clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use peerpod_it::{Bed, root};
use peerpod_netlink::nft::expression::{Rule, Verdict};
use peerpod_netlink::nft::{Batch, Family, Nft, Table};
use peerpod_netlink::{Error, Netns};
use peerpod_standin::lab::{PodNet, wait_for};
use peerpod_standin::shim::Profile;

const HOST: Table<'static> = Table { family: Family::Inet, name: "peerpod" };
const POD: Table<'static> = Table { family: Family::Netdev, name: "peerpod" };
const METADATA: [u8; 4] = [169, 254, 169, 254];
/// Well below the time between the looks that the daemon takes anyway.
const PATIENCE: Duration = Duration::from_secs(12);

type Alter = fn() -> Result<(), Error>;

/// Who speaks for VNIs, what is blocked, and how many rules there are.
#[derive(Debug, PartialEq, Eq)]
struct Filters {
    speakers: Vec<(Vec<u8>, String)>,
    blocked: Vec<(Vec<u8>, String)>,
    rules: Vec<usize>,
}

fn filters(worker: &Netns, pod: &PodNet) -> Result<Filters, Error> {
    let rules = |table, chain| Ok::<_, Error>(Nft::counters(table, chain)?.len());
    let (speakers, guard) =
        worker.run(|| Ok::<_, Error>((Nft::elements(HOST, "vms4")?, rules(HOST, "input")?)))?;
    let (mut blocked, pin) = pod.open()?.run(|| {
        let chains = ["from_pod", "from_vm", "drop_node"];
        let pin = chains.into_iter().map(|c| rules(POD, c)).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, Error>((Nft::elements(POD, "blocked4")?, pin))
    })?;
    blocked.sort();
    Ok(Filters { speakers, blocked, rules: [vec![guard], pin].concat() })
}

/// What the kernel has of our host table's speakers, with another address.
fn another_speaker() -> Result<(), Error> {
    let mut batch = Batch::new();
    for (mut key, _) in Nft::elements(HOST, "vms4")? {
        if let Some(last) = key.last_mut() {
            *last ^= 0x40;
        }
        batch = batch.element(HOST, "vms4", &key, "tamper");
    }
    batch.send("let another in")
}

const OF_HOST: [(&str, Alter); 3] = [
    ("the source filter is removed", || Batch::new().delete_table(HOST).send("tamper")),
    ("the source filter gets a rule that lets all in", || {
        let accept = Rule::new().verdict(Verdict::Accept);
        Batch::new().rule(HOST, "input", &accept).send("tamper")
    }),
    ("the source filter lets another address in", another_speaker),
];

const OF_POD: [(&str, Alter); 3] = [
    ("the pod's filter is removed", || Batch::new().delete_table(POD).send("tamper")),
    ("the pod's filter gets a rule more", || {
        let accept = Rule::new().verdict(Verdict::Accept);
        Batch::new().rule(POD, "drop_node", &accept).send("tamper")
    }),
    ("the metadata service is not blocked", || {
        Batch::new().delete_element(POD, "blocked4", &METADATA).send("tamper")
    }),
];

/// How often tunnels were found altered and put right.
async fn repairs(bed: &Bed) -> anyhow::Result<u64> {
    let (_, text) = bed.daemon.get("/metrics").await?;
    let line = text
        .lines()
        .find(|l| l.starts_with("kata_peerpodd_tunnel_altered") && l.contains("repair=\"ok\""));
    let number = line.and_then(|l| l.rsplit(' ').next()).and_then(|n| n.parse::<f64>().ok());
    Ok(number.unwrap_or_default() as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_puts_a_filter_back_that_others_remove_or_alter() {
    if !root("the_daemon_puts_a_filter_back_that_others_remove_or_alter") {
        return;
    }
    let bed = Bed::new(&[]).await.unwrap();
    let (net, shim) = bed.boot(Profile::RsLike, 1).await.unwrap();
    let network = bed.lab.network();
    let whole = filters(network.worker(), &net).unwrap();
    assert!(whole.blocked.iter().any(|(key, _)| *key == METADATA), "{whole:?}");
    let pod = net.open().unwrap();
    let of_host = OF_HOST.into_iter().map(|a| (a, network.worker()));
    let of_pod = OF_POD.into_iter().map(|a| (a, &pod));
    for ((what, alter), netns) in of_host.chain(of_pod) {
        let before = repairs(&bed).await.unwrap();
        netns.run(alter).unwrap();
        let put_back = || async {
            let again = filters(network.worker(), &net)? == whole;
            Ok((again && repairs(&bed).await? > before).then_some(()))
        };
        let done = wait_for(what, PATIENCE, put_back).await;
        done.map_err(|e| e.context(bed.daemon.log_tail())).unwrap();
    }
    let status = bed.status(&shim.spec().sandbox).await.unwrap().unwrap();
    assert_eq!(status["phase"], "running", "{status}");
    assert!(status.to_string().contains("the tunnel was altered"), "{status}");
    drop(pod);
    shim.stop().await.unwrap();
    bed.end().await.unwrap();
}

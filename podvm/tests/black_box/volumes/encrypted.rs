//! Volumes that the data hub opens.

use super::*;

/// A data hub that "opens" a disk by mounting it, and tells what it was asked.
async fn data_hub(socket: PathBuf, pid: u32, answers: usize) -> Vec<BTreeMap<String, String>> {
    let listener = UnixListener::bind(socket).unwrap();
    let mut asked = Vec::new();
    for _ in 0..answers {
        let (stream, _) = listener.accept().await.unwrap();
        let (from, mut to) = stream.into_split();
        let frame = FrameReader::new(from, None).next().await.unwrap().expect("a call");
        let call = Request::parse(&frame.payload).unwrap();
        assert_eq!((&*call.service, &*call.method), ("api.SecureMountService", "SecureMount"));
        let mut options = BTreeMap::new();
        for field in wire::fields(&call.payload).unwrap() {
            let content = field.content.unwrap();
            let text = String::from_utf8_lossy(content).into_owned();
            match field.number {
                1 => drop(options.insert("type".to_owned(), text)),
                2 => {
                    let of = |n| wire::text(content, n).unwrap().to_owned();
                    options.insert(of(1), of(2));
                }
                4 => drop(options.insert("point".to_owned(), text)),
                other => panic!("field {other}"),
            }
        }
        let answer = if options["key"].ends_with("refused") {
            Response::error(7, "the key broker does not know this VM")
        } else {
            let pid = pid.to_string();
            let enter =
                ["--mount", "--target", &pid, "mount", "-t", "tmpfs", "opened", &options["point"]];
            let as_disk = [
                "--mount",
                "--target",
                &pid,
                "mount",
                "-t",
                "ext4",
                &options["devicePath"],
                &options["point"],
            ];
            let what = if options["sourceType"] == "empty" { &enter[..] } else { &as_disk[..] };
            assert!(Command::new("nsenter").args(what).status().unwrap().success());
            Response::default()
        };
        answer.frame(frame.stream).write(&mut to).await.unwrap();
        asked.push(options);
    }
    asked
}

#[tokio::test]
async fn encrypted_volumes_are_mounted_by_the_data_hub_and_what_it_did_is_looked_at() {
    let test =
        "volumes::encrypted_volumes_are_mounted_by_the_data_hub_and_what_it_did_is_looked_at";
    let Some(bench) = Bench::new(test) else { return };
    let podvm = bench.run(&["--confidential=yes"]).await;
    let hub = tokio::spawn(data_hub(bench.lab.path("cdh.sock"), podvm.pid(), 3));
    let mut worker = bench.lab.connect(&podvm).await;
    let encrypted = |key: &str| volume("disk-a", &[("encrypt_type", "LUKS"), ("key_id", key)]);
    let (code, said) = status(worker.call(&create(1, &encrypted("default/key/refused"))).await);
    assert_eq!((code, said.contains("key broker does not know")), (14, true), "{said}");
    // It says that all is well, and has mounted something else.
    let (code, said) = status(worker.call(&create(3, &encrypted("default/key/1"))).await);
    assert_eq!((code, said.contains("has another disk")), (9, true), "{said}");
    inside(&podvm, &["umount", &bench.point("vol-0")]);
    bench.a.format();
    // Ours to mount it is not: what looks like LUKS is the hub's.
    bench.a.write(0, b"LUKS\xba\xbe");
    let answer = worker.call(&create(5, &encrypted("default/key/1"))).await;
    assert_eq!(status(answer), (0, String::new()), "{}", podvm.log());
    let asked = tokio::time::timeout(PATIENCE, hub).await.expect("three calls").unwrap();
    let of = |key: &str| asked.iter().map(|a| a[key].as_str()).collect::<Vec<_>>();
    assert_eq!(of("sourceType"), ["empty", "empty", "encrypted"]);
    let last = &asked[2];
    let point = bench.point("vol-0");
    for (key, value) in [
        ("type", "block-device"),
        ("devicePath", bench.a.device.as_str()),
        ("targetType", "fileSystem"),
        ("encryptionType", "luks2"),
        ("filesystemType", "ext4"),
        ("key", "kbs:///default/key/1"),
        ("mapperName", "caa-vol-0"),
        ("point", point.as_str()),
    ] {
        assert_eq!(last[key], value, "{key}");
    }
}

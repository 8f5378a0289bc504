use super::*;

#[test]
fn booleans_are_what_upstream_takes_and_nothing_else() {
    for text in ["1", "true", "TRUE", "True"] {
        assert_eq!(boolean(text), Ok(true), "{text}");
    }
    for text in ["0", "false", "FALSE"] {
        assert_eq!(boolean(text), Ok(false), "{text}");
    }
    for text in ["", "yes", "t", "on", "2", "truee"] {
        assert!(boolean(text).is_err(), "{text}");
    }
}

#[test]
fn numbers_and_ports_have_bounds() {
    assert_eq!(number::<1, 10>("10"), Ok(10));
    for text in ["0", "11", "", "x", "1.0", "99999999999999999999"] {
        let problem = number::<1, 10>(text).expect_err(text);
        assert_eq!(problem, "is not a whole number from 1 to 10");
    }
    assert_eq!(port("65535"), Ok(65535));
    for text in ["0", "65536", "-1", "http"] {
        assert!(port(text).is_err(), "{text}");
    }
}

#[test]
fn durations_are_gos_and_have_bounds() {
    assert_eq!(duration::<1_000, 3_600_000>("1m30s"), Ok(Duration::from_secs(90)));
    assert!(duration::<1_000, 3_600_000>("250ms").expect_err("short").contains("between 1s"));
    assert!(duration::<1_000, 3_600_000>("2h").is_err());
    assert!(duration::<1_000, 3_600_000>("5").is_err());
    assert_eq!(interval("0"), Ok(None));
    assert_eq!(interval("5m"), Ok(Some(Duration::from_secs(300))));
    assert!(interval("10ms").is_err());
}

#[test]
fn paths_are_absolute_and_fit_a_socket() {
    assert_eq!(directory("/a//b/./c/"), Ok(PathBuf::from("/a/b/c")));
    for text in ["", "relative", "./x", "/a/../b"] {
        assert!(directory(text).is_err(), "{text}");
    }
    let longest = format!("/{}", "x".repeat(SOCKET_MAX - 1));
    assert!(socket(&longest).is_ok());
    assert!(socket(&format!("{longest}x")).expect_err("long").contains("108 bytes"));
    assert!(socket_directory::<13>(&longest).expect_err("long").contains("at most 94"));
    assert_eq!(file(""), Ok(None));
}

#[test]
fn lists_are_trimmed_and_without_repetitions() {
    let parts = list(" a, b ,,a,c ").expect("a list");
    assert_eq!(parts, ["a", "b", "c"]);
    assert_eq!(list(""), Ok(Vec::new()));
    let networks = networks("10.0.0.0/8, fd00::/8").expect("networks");
    assert_eq!(networks.len(), 2);
    for text in ["10.0.0.1", "10.0.0.0/33", "x/8"] {
        assert!(super::networks(text).expect_err(text).contains(text));
    }
}

#[test]
fn tags_are_read_in_both_shapes_users_write() {
    let read = tags("a=b, c = d ,e:f,url=http://x,empty=").expect("tags");
    let expected = [("a", "b"), ("c", "d"), ("e", "f"), ("empty", ""), ("url", "http://x")];
    let read: Vec<_> = read.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(read, expected);
    for (text, problem) in [
        ("a", "\"a\" is not key=value"),
        ("a:b:c", "is not key=value"),
        ("=x", "has no key"),
        ("a=1,a=2", "\"a\" is given twice"),
        ("peerpodd-node=x", "kept for our own tags"),
    ] {
        assert!(tags(text).expect_err(text).contains(problem), "{text}");
    }
}

#[test]
fn labels_for_cost_tags_are_keys_of_labels_and_no_tag_is_meant_twice() {
    let read = cost_tags("team, app.kubernetes.io/name = app,Cost").expect("labels");
    let read: Vec<_> = read.iter().map(|c| (c.label.as_str(), c.tag.as_str())).collect();
    assert_eq!(read, [("team", "team"), ("app.kubernetes.io/name", "app"), ("Cost", "Cost")]);
    assert_eq!(cost_tags(""), Ok(Vec::new()));
    for (text, problem) in [
        ("a,b c", "\"b c\" is not the key of a label"),
        ("team=", "\"team=\" has no key of a tag"),
        ("=team", "\"\" is not the key of a label"),
        ("a=PeerPodd-pod", "kept for our own tags"),
        ("a,a=b", "label \"a\" is given twice"),
        ("a=x,b=X", "tag \"X\" is given twice"),
    ] {
        assert!(cost_tags(text).expect_err(text).contains(problem), "{text}");
    }
    let many: Vec<String> = (0..65).map(|n| format!("l{n}")).collect();
    assert!(cost_tags(&many.join(",")).expect_err("too many").contains("65 labels"));
}

#[test]
fn names_with_few_choices_say_which() {
    assert!(tunnel_type("vxlan").is_ok());
    assert!(tunnel_type("routing").expect_err("gone").contains("vxlan"));
    assert_eq!(log_format("JSON"), Ok(LogFormat::Json));
    assert!(log_format("xml").expect_err("unknown").contains("text or json"));
    assert_eq!(interface("eth0"), Ok(Some("eth0".to_owned())));
    assert_eq!(interface(""), Ok(None));
    for text in ["a/b", "a b", "sixteen-bytes-xx", ".."] {
        assert!(interface(text).is_err(), "{text}");
    }
    assert!(installation_id("a-1").is_ok());
    assert!(installation_id("A").is_err());
    assert!(installation_id(&"a".repeat(64)).is_err());
}

#[test]
fn log_levels_are_words_or_directives() {
    assert_eq!(log_filter("WARN"), Ok("warn".to_owned()));
    assert_eq!(log_filter("fatal"), Ok("error".to_owned()));
    let debug = log_filter("debug").expect("a level");
    assert!(debug.starts_with("info,peerpodd=debug,peerpod_providers=debug"), "{debug}");
    assert!(log_filter("info,peerpodd::pod=debug").is_ok());
    for text in ["loud", "", "peerpodd=verbose", "info,,=x[["] {
        assert!(log_filter(text).is_err(), "{text}");
    }
}

#[test]
fn global_initdata_is_decoded_at_start() {
    assert_eq!(initdata(""), Ok(None));
    assert!(initdata("not base64 !").is_err());
    let text = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = \"x\"\n";
    let wrapped = Initdata::from_toml(text).expect("initdata").encode();
    assert!(initdata(&wrapped).expect("decoded").is_some());
}

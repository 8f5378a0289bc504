use super::*;

fn read_as(argv: &[&str], env: &[(&str, &str)]) -> Result<Call, Leave> {
    read(&Start {
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        hostname: "worker-1".to_owned(),
        program: PathBuf::from("/usr/local/bin/peerpodd"),
    })
}

fn said(argv: &[&str]) -> String {
    match read_as(argv, &[]) {
        Ok(Call::Say(text)) => text,
        other => panic!("{argv:?}: {other:?}"),
    }
}

fn left(argv: &[&str]) -> Leave {
    read_as(argv, &[]).expect_err("nothing to do")
}

#[test]
fn each_process_has_a_subcommand() {
    for (name, expected) in [("node", Role::Node), ("relay", Role::Relay), ("run", Role::Run)] {
        let call = read_as(&["peerpodd", name, "-vxlan-port", "5000"], &[]).expect("a call");
        let Call::Process { role, loaded, args, refusal } = call else { panic!("{name}") };
        assert_eq!((role, refusal), (expected, 2));
        assert_eq!(args, ["-vxlan-port", "5000"]);
        assert_eq!(loaded.settings().expect("settings").tunnel.vxlan_port, 5000);
    }
}

#[test]
fn the_cloud_is_asked_with_a_few_words_and_the_settings_of_a_process() {
    let asked = |words: &[&str]| {
        let argv: Vec<&str> = std::iter::once("peerpodd").chain(words.iter().copied()).collect();
        match read_as(&argv, &[]) {
            Ok(Call::Cloud { question, loaded }) => (question, loaded.asked.json),
            other => panic!("{words:?}: {other:?}"),
        }
    };
    let leaks = |delete, all, gone: Option<&str>| Question::Leaks {
        delete,
        all,
        copies: false,
        gone: gone.map(str::to_owned),
    };
    let copies = Question::Leaks { delete: true, all: false, copies: true, gone: None };
    for (words, expected) in [
        (&["doctor", "cloud", "local", "-o", "json"] as &[&str], (Question::Doctor, true)),
        (&["leaks"], (leaks(false, false, None), false)),
        (&["leaks", "--delete", "--vxlan-port", "5000"], (leaks(true, false, None), false)),
        (&["leaks", "--node-gone", "w2", "--all"], (leaks(false, true, Some("w2")), false)),
        (&["leaks", "--copies", "--delete"], (copies, false)),
        (&["leaks", "--node-gone=w2"], (leaks(false, false, Some("w2")), false)),
        (&["console", "podvm-x"], (Question::Console("podvm-x".to_owned()), false)),
    ] {
        assert_eq!(asked(words), expected, "{words:?}");
    }
    for words in
        [&["doctor"] as &[&str], &["doctor", "dog"], &["console"], &["leaks", "--node-gone"]]
    {
        let argv: Vec<&str> = std::iter::once("peerpodd").chain(words.iter().copied()).collect();
        let leave = left(&argv);
        assert!(leave.text.starts_with("usage: peerpodd ") && leave.code == 2, "{}", leave.text);
    }
}

#[test]
fn under_the_go_programs_name_the_first_argument_is_the_provider() {
    let call = read_as(&["/usr/local/bin/cloud-api-adaptor", "local", "-disable-tls"], &[]);
    let Ok(Call::Process { role: Role::Run, loaded, args, refusal: 1 }) = call else {
        panic!("{call:?}")
    };
    assert_eq!(args, ["local", "-disable-tls"]);
    assert_eq!(loaded.settings().expect("settings").provider.name, "local");
    for argv in [
        &["cloud-api-adaptor"] as &[&str],
        &["cloud-api-adaptor", "-socket"],
        &["cloud-api-adaptor", ""],
    ] {
        let leave = left(argv);
        assert!(leave.text.starts_with("usage: cloud-api-adaptor <provider>"), "{}", leave.text);
        assert_eq!(leave.code, 1);
    }
    let leave = left(&["cloud-api-adaptor", "node"]);
    assert!(leave.text.contains("\"node\" is not known") && leave.code == 1, "{}", leave.text);
    let leave = left(&["cloud-api-adaptor", "aws"]);
    assert!(leave.text.contains("cargo feature \"aws\""), "{}", leave.text);
    for word in ["help", "-help", "--help"] {
        assert!(said(&["cloud-api-adaptor", word]).contains("providers of this build: local"));
    }
    assert!(said(&["cloud-api-adaptor", "version"]).contains(VERSION));
    assert!(said(&["cloud-api-adaptor", "local", "-help"]).contains("--vxlan-port"));
}

#[test]
fn help_and_version_are_no_failures_and_nothing_to_do_is_one() {
    assert!(said(&["peerpodd", "help"]).contains("status"));
    assert!(said(&["peerpodd", "-help"]).contains("relay"));
    assert_eq!(said(&["peerpodd", "version"]), format!("peerpodd {}\n", build()));
    assert!(said(&["peerpodd", "--version"]).contains(VERSION));
    assert_eq!(left(&["peerpodd"]).code, 1);
    assert_eq!(left(&["peerpodd", "nood"]).code, 1);
    assert_eq!(left(&[]).code, 1);
}

#[test]
fn help_of_a_process_names_every_setting_its_variable_and_default() {
    let text = said(&["peerpodd", "node", "--help"]);
    for part in [
        "--forwarder-port",
        "[env FORWARDER_PORT]",
        "[default 15150]",
        "--local-cidr",
        "--print-config",
        "peerpodd node",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn the_effective_settings_are_printed_and_the_exit_code_says_whether_they_can_be_used() {
    let text = said(&["peerpodd", "node", "--print-config", "--vxlan-port=5000"]);
    assert!(text.lines().any(|l| l.starts_with("vxlan-port") && l.contains("5000")), "{text}");
    assert!(said(&["peerpodd", "relay", "--print-config", "-o", "json"]).starts_with('['));
    let leave = left(&["peerpodd", "node", "--print-config", "--vxlan-port=x"]);
    assert_eq!(leave.code, 2);
    assert!(leave.text.contains("vxlan-port ") && leave.text.contains("is not a port"));
}

#[test]
fn status_takes_a_pod_a_form_and_the_port_from_flag_or_environment() {
    let call = read_as(&["peerpodd", "status", "ns/web", "-o", "json"], &[("PROBE_PORT", "8123")]);
    let Ok(Call::Status { port: 8123, pod: Some(pod), json: true }) = call else {
        panic!("{call:?}")
    };
    assert_eq!(pod, "ns/web");
    let call = read_as(&["peerpodd", "status", "-probe-port", "9"], &[("PROBE_PORT", "8123")]);
    assert!(matches!(call, Ok(Call::Status { port: 9, pod: None, json: false })), "{call:?}");
    let leave = left(&["peerpodd", "status", "--probe-port", "x"]);
    assert!(leave.code == 2 && leave.text.contains("PROBE_PORT"), "{}", leave.text);
    assert_eq!(left(&["peerpodd", "status", "-o", "xml"]).code, 1);
}

#[test]
fn a_call_never_prints_the_environment() {
    let call = read_as(&["peerpodd", "node"], &[("INITDATA", "hunter2"), ("OTHER", "hunter2")]);
    assert!(!format!("{call:?}").contains("hunter2"));
}

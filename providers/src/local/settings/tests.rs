use super::*;

fn read(values: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let values = values.iter().copied().collect();
    Settings::from_values(&values, Path::new("/opt/peerpodd"), "/nowhere")
}

fn refusal(flag: &str, value: &str) -> String {
    read(&[(flag, value)]).expect_err("refused").to_string()
}

#[test]
fn defaults_lie_beside_the_program_and_do_not_survive_a_reboot() {
    let settings = read(&[]).expect("defaults are fine");
    assert_eq!(settings.state_dir, Path::new("/run/peerpod/local"));
    assert_eq!(settings.cidr.to_string(), "172.31.0.0/24");
    assert_eq!(settings.podvm, ["/opt/podvm"]);
    assert_eq!(settings.guest_program, ["/opt/peerpodd", "local-guest"]);
    assert_eq!(settings.boot_delay, Duration::ZERO);
    let plain = read(&[("local-podvm", "/opt/podvm run -disable-tls")]).expect("fine");
    assert_eq!(plain.podvm, ["/opt/podvm", "run", "-disable-tls"]);
}

#[test]
fn the_standin_agent_is_preferred_to_kata_agent_from_the_path() {
    let dir = tempfile::tempdir().expect("directory");
    let (bin, path) = (dir.path().join("bin"), dir.path().join("path"));
    for dir in [&bin, &path] {
        std::fs::create_dir(dir).expect("directory");
    }
    let agent = |program: &Path| default_agent(program, path.to_str().expect("utf-8"));
    let program = bin.join("peerpodd");
    assert_eq!(agent(&program), bin.join("standin-agent"), "what check will miss");
    std::fs::write(path.join("kata-agent"), "").expect("file");
    assert_eq!(agent(&program), path.join("kata-agent"));
    let named = command("kata-agent --flag", path.to_str().expect("utf-8"));
    assert_eq!(named, Ok(vec![path.join("kata-agent").into(), "--flag".into()]));
    assert_eq!(command("nowhere", ""), Ok(vec!["nowhere".into()]), "what check will miss");
    std::fs::write(bin.join("standin-agent"), "").expect("file");
    assert_eq!(agent(&program), bin.join("standin-agent"));
}

#[test]
fn every_bad_value_is_refused_with_its_key_and_what_is_wrong() {
    let cases = [
        ("local-cidr", "172.31.0.0/40", "LOCAL_CIDR (--local-cidr) \"172.31.0.0/40\" is not a"),
        ("local-cidr", "172.31.0.5/24", "the network is 172.31.0.0/24"),
        ("local-cidr", "172.31.0.0/30", "prefix outside /8 to /29"),
        ("local-cidr", "127.0.0.0/24", "no network that machines can have"),
        ("local-cidr", "fd00::1/64", "host bits set"),
        ("local-state-dir", "relative", "LOCAL_STATE_DIR (--local-state-dir) \"relative\" is not"),
        ("local-podvm", "podvm", "LOCAL_PODVM (--local-podvm) \"podvm\" is not an absolute path"),
        ("local-agent", "a 'b", "LOCAL_AGENT (--local-agent) \"a 'b\" has a quote"),
        ("local-boot-delay", "5", "LOCAL_BOOT_DELAY (--local-boot-delay) \"5\" is not a duration"),
        ("local-mode", "qemu", "LOCAL_MODE (--local-mode) \"qemu\" is not in this build"),
        ("local-mode", "vm", "LOCAL_MODE (--local-mode) \"vm\" is not known"),
    ];
    for (flag, value, expected) in cases {
        let text = refusal(flag, value);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn all_bad_values_come_in_one_message() {
    let error = read(&[("local-cidr", "x"), ("local-mode", "qemu"), ("local-podvm", "y")]);
    let text = error.expect_err("refused").to_string();
    assert!(["LOCAL_CIDR", "LOCAL_MODE", "LOCAL_PODVM"].iter().all(|k| text.contains(k)), "{text}");
}

#[test]
fn an_agent_command_is_split_as_a_shell_would() {
    let settings = read(&[("local-agent", r#"/bin/agent --name "a b" 'c\d' e\ f """#)]);
    let words = settings.expect("fine").agent;
    assert_eq!(words, ["/bin/agent", "--name", "a b", r"c\d", "e f", ""]);
}

#[test]
fn vm_addresses_leave_out_network_gateway_and_broadcast() {
    let settings = read(&[("local-cidr", "10.1.2.8/29")]).expect("fine");
    assert_eq!(settings.gateway().to_string(), "10.1.2.9");
    let all: Vec<String> = settings.vm_addresses().map(|a| a.to_string()).collect();
    assert_eq!(all, ["10.1.2.10", "10.1.2.11", "10.1.2.12", "10.1.2.13", "10.1.2.14"]);
    let settings = read(&[("local-cidr", "fd00:1::/125")]).expect("fine");
    let all: Vec<String> = settings.vm_addresses().map(|a| a.to_string()).collect();
    assert_eq!(all.first().map(String::as_str), Some("fd00:1::2"));
    assert_eq!(all.last().map(String::as_str), Some("fd00:1::7"));
}

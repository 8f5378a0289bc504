use super::super::table;
use super::*;

fn specs() -> Vec<Spec> {
    table::ALL.iter().map(|s| **s).collect()
}

fn line(args: &[&str]) -> Line {
    let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    read(&args, &specs())
}

fn flags(args: &[&str]) -> Vec<(String, String)> {
    let line = line(args);
    assert_eq!((line.problems, line.words), (vec![], vec![]), "{args:?}");
    line.flags
}

#[test]
fn every_spelling_of_go_means_the_same() {
    for args in
        [&["-socket", "/s"] as &[&str], &["--socket", "/s"], &["-socket=/s"], &["--socket=/s"]]
    {
        assert_eq!(flags(args), [("socket".to_owned(), "/s".to_owned())]);
    }
}

#[test]
fn a_boolean_needs_no_value_and_takes_one_only_with_an_equals_sign() {
    let expected = |v: &str| [("disable-tls".to_owned(), v.to_owned())];
    assert_eq!(flags(&["-disable-tls"]), expected("true"));
    assert_eq!(flags(&["--disable-tls=false"]), expected("false"));
    let line = line(&["--disable-tls", "false"]);
    assert_eq!(line.flags, expected("true"));
    assert_eq!(line.words, ["false"]);
}

#[test]
fn a_value_may_look_like_a_flag_or_contain_an_equals_sign() {
    assert_eq!(
        flags(&["--peerpods-limit-per-node", "-1"]),
        [("peerpods-limit-per-node".to_owned(), "-1".to_owned())]
    );
    assert_eq!(flags(&["--tags=a=b"]), [("tags".to_owned(), "a=b".to_owned())]);
    assert_eq!(flags(&["-node-name="]), [("node-name".to_owned(), String::new())]);
}

#[test]
fn two_dashes_end_the_flags() {
    assert_eq!(line(&["--", "-socket"]).words, ["-socket"]);
    assert_eq!(line(&["-"]).problems.len(), 1);
}

#[test]
fn short_names_and_flags_that_are_no_settings_are_known() {
    assert_eq!(flags(&["-h"]), [("help".to_owned(), "true".to_owned())]);
    assert_eq!(flags(&["-o", "json"]), [("output".to_owned(), "json".to_owned())]);
    assert_eq!(flags(&["--print-config"]), [("print-config".to_owned(), "true".to_owned())]);
}

#[test]
fn an_unknown_flag_is_told_the_nearest_and_its_value_is_not_repeated() {
    let problems = line(&["--vxlan-prt=hunter2", "-zzz"]).problems;
    let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(text.contains("--vxlan-prt: is no flag; --vxlan-port is the nearest"), "{text}");
    assert!(text.contains("-zzz: is no flag; --help lists them"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_flag_without_its_value_is_a_problem() {
    let problems = line(&["--socket"]).problems;
    assert_eq!(problems[0].to_string(), "--socket: has no value");
}

#[test]
fn distances_are_counted() {
    for (a, b, n) in [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("abc", "abc", 0)] {
        assert_eq!(distance(a, b), n, "{a} {b}");
    }
}

proptest::proptest! {
    #[test]
    fn no_command_line_panics(args in proptest::collection::vec(".{0,12}", 0..6)) {
        read(&args, &specs());
    }
}

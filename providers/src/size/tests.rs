use proptest::prelude::*;

use super::*;
use crate::prices::Price;

fn of(name: &str, vcpus: u32, memory_mib: u64, gpus: u32, price: Option<u64>) -> InstanceType {
    InstanceType { name: name.to_owned(), vcpus, memory_mib, gpus, price: price.map(Price) }
}

fn catalogue() -> Vec<InstanceType> {
    vec![
        of("m.large", 2, 8192, 0, None),
        of("m.xlarge", 4, 16384, 0, None),
        of("c.xlarge", 4, 8192, 0, None),
        of("g.xlarge", 4, 16384, 1, None),
        of("g.huge", 16, 65536, 4, None),
        of("x.secret", 1, 1024, 0, None),
    ]
}

fn rules() -> SizeRules {
    SizeRules {
        default_type: "m.large".to_owned(),
        allowed: ["m.xlarge", "c.xlarge", "g.*"].map(str::to_owned).to_vec(),
        any_size: None,
    }
}

fn size(vcpus: u32, memory_mib: u64, gpus: u32) -> SizeRequest {
    SizeRequest {
        instance_type: None,
        vcpus: (vcpus > 0).then_some(vcpus),
        memory_mib: (memory_mib > 0).then_some(memory_mib),
        gpus,
    }
}

fn named(name: &str) -> SizeRequest {
    SizeRequest { instance_type: Some(name.to_owned()), ..size(64, 1, 8) }
}

fn names(request: &SizeRequest) -> Vec<String> {
    let choice = choose(request, &catalogue(), &rules()).expect("a type");
    choice.types.into_iter().map(|t| t.name).collect()
}

#[test]
fn a_named_type_wins_over_every_size() {
    assert_eq!(names(&named("c.xlarge")), ["c.xlarge"]);
    assert_eq!(names(&named("m.large")), ["m.large"], "the default is always permitted");
}

#[test]
fn nothing_asked_is_the_default_alone() {
    assert_eq!(names(&size(0, 0, 0)), ["m.large"]);
    let empty = SizeRequest { instance_type: Some(String::new()), ..SizeRequest::default() };
    assert_eq!(names(&empty), ["m.large"]);
}

#[test]
fn cpu_alone_and_memory_alone_are_honoured() {
    assert_eq!(names(&size(3, 0, 0)), ["c.xlarge", "m.xlarge"]);
    assert_eq!(names(&size(0, 9000, 0)), ["m.xlarge"]);
    assert_eq!(names(&size(1, 1, 0)), ["m.large", "c.xlarge", "m.xlarge"]);
}

#[test]
fn gpus_take_cpu_and_memory_along() {
    assert_eq!(names(&size(0, 0, 1)), ["g.xlarge", "g.huge"]);
    assert_eq!(names(&size(8, 0, 1)), ["g.huge"]);
}

#[test]
fn a_price_counts_only_if_all_that_fit_have_one() {
    let mut types = vec![of("small", 2, 4096, 0, Some(90)), of("big", 8, 32768, 0, Some(50))];
    let rules = SizeRules {
        default_type: "small".to_owned(),
        allowed: vec!["*".to_owned()],
        any_size: None,
    };
    let first = |types: &[InstanceType]| {
        choose(&size(1, 0, 0), types, &rules).expect("a type").types[0].name.clone()
    };
    assert_eq!(first(&types), "big");
    types.push(of("unpriced", 4, 8192, 0, None));
    assert_eq!(first(&types), "small");
}

#[test]
fn refusals_have_the_texts_that_upstreams_tests_match() {
    let refuse = |request: &SizeRequest, rules: &SizeRules| {
        choose(request, &catalogue(), rules).expect_err("refused").to_string()
    };
    let bare = SizeRules { default_type: "m.large".to_owned(), ..SizeRules::default() };
    assert_eq!(
        refuse(&named("x.secret"), &rules()),
        "requested instance type (\"x.secret\") is not part of supported instance types list"
    );
    assert_eq!(
        refuse(&named("x.secret"), &bare),
        "requested instance type (\"x.secret\") is not default (\"m.large\") and supported \
         instance types list is empty"
    );
    assert_eq!(
        refuse(&size(64, 0, 0), &rules()),
        "failed to get instance type based on vCPU and memory annotations: no instance type found \
         for the given vcpus (64) and memory (0)"
    );
    assert_eq!(
        refuse(&size(2, 100, 9), &rules()),
        "failed to get instance type based on GPU, vCPU, and memory annotations: no instance type \
         found for the given GPUs (9), vCPUs (2), and memory (100)"
    );
}

#[test]
fn without_a_list_the_default_may_still_fit_a_size() {
    let bare = SizeRules { default_type: "m.large".to_owned(), ..SizeRules::default() };
    let choice = choose(&size(2, 8192, 0), &catalogue(), &bare).expect("the default fits");
    assert_eq!(choice.types, [of("m.large", 2, 8192, 0, None)]);
    assert!(choose(&size(3, 0, 0), &catalogue(), &bare).is_err());
}

#[test]
fn a_permitted_name_without_a_type_is_a_mistake_in_the_settings() {
    let mut rules = rules();
    assert!(unknown(&rules, &catalogue()).is_empty());
    rules.allowed.push("q.*".to_owned());
    assert_eq!(unknown(&rules, &catalogue()), ["q.*"]);
}

fn any_type() -> impl Strategy<Value = InstanceType> {
    (0..20_u32, 1..9_u32, 1..9_u64, prop_oneof![3 => Just(0), 2 => 1..4_u32], any::<Option<u8>>())
        .prop_map(|(n, vcpus, memory, gpus, price)| {
            of(&format!("t{n}"), vcpus, memory * 1024, gpus, price.map(u64::from))
        })
}

#[test]
fn a_provider_without_types_makes_what_is_asked_for_within_its_bounds() {
    let sizes = AnySize { vcpus: 2, memory_mib: 8192, vcpus_max: 8, memory_mib_max: 16384 };
    let rules = SizeRules { any_size: Some(sizes), ..SizeRules::default() };
    let name = |request| choose(&request, &[], &rules).map(|c| c.types[0].name.clone());
    assert_eq!(name(size(0, 0, 0)).as_deref(), Ok("2x8192"));
    assert_eq!(name(size(4, 0, 0)).as_deref(), Ok("4x8192"));
    assert_eq!(name(size(0, 512, 0)).as_deref(), Ok("2x512"));
    assert_eq!(AnySize::parse("4x8192"), Some((4, 8192)));
    assert_eq!(AnySize::parse("local"), None);
    assert!(matches!(name(size(9, 0, 0)), Err(SizeError::NoFit { vcpus: 9, .. })));
    assert!(matches!(name(size(0, 0, 1)), Err(SizeError::NoGpuFit { gpus: 1, .. })));
    let named =
        SizeRequest { instance_type: Some("m6a.large".to_owned()), ..SizeRequest::default() };
    assert_eq!(name(named), Err(SizeError::NoTypes("m6a.large".to_owned())));
}

proptest! {
    #[test]
    fn the_choice_is_always_the_cheapest_that_fits(
        types in prop::collection::vec(any_type(), 0..25),
        permitted in prop::collection::btree_set(0..20_u32, 0..20),
        (vcpus, memory, gpus) in (0..10_u32, 0..10_000_u64, 0..5_u32),
    ) {
        prop_assume!(vcpus > 0 || memory > 0 || gpus > 0);
        let rules = SizeRules {
            default_type: "t0".to_owned(),
            allowed: permitted.iter().map(|n| format!("t{n}")).collect(),
            any_size: None,
        };
        let fits = |t: &&InstanceType| {
            (t.name == "t0" || rules.allowed.contains(&t.name))
                && t.vcpus >= vcpus && t.memory_mib >= memory
                && (if gpus == 0 { t.gpus == 0 } else { t.gpus >= gpus })
        };
        let fitting: Vec<&InstanceType> = types.iter().filter(fits).collect();
        match choose(&size(vcpus, memory, gpus), &types, &rules) {
            Err(_) => prop_assert!(fitting.is_empty()),
            Ok(choice) => {
                prop_assert_eq!(choice.types.len(), fitting.len());
                let best = &choice.types[0];
                prop_assert!(fits(&best));
                let cost = |t: &InstanceType| (t.gpus, t.memory_mib, t.vcpus);
                if fitting.iter().all(|t| t.price.is_some()) {
                    prop_assert!(fitting.iter().all(|t| best.price <= t.price));
                } else {
                    prop_assert!(fitting.iter().all(|t| cost(best) <= cost(t)));
                }
                prop_assert!(choice.reason.contains(&best.name));
            }
        }
    }
}

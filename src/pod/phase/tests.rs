use peerpod_providers::VmName;
use proptest::prelude::*;

use super::*;

fn vm() -> Vm {
    Vm {
        native_id: "i-1".to_owned(),
        name: VmName::first_form("web", "0123456789"),
        addresses: vec![[10, 0, 0, 7].into()],
        instance_type: "small".to_owned(),
        zone: None,
        price_per_hour: None,
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Start),
        3 => (0u32..4).prop_map(Event::Attempt),
        2 => Just(Event::Refused),
        3 => Just(Event::Made(vm())),
        3 => Just(Event::Answered),
        1 => "[a-z]{1,5}".prop_map(Event::End),
        2 => Just(Event::Gone),
        2 => Just(Event::Removed),
    ]
}

#[test]
fn a_pod_goes_from_prepared_to_running_and_away() {
    let mut phase = Phase::Prepared;
    let life = [Event::Start, Event::Attempt(0), Event::Refused, Event::Attempt(1)];
    let rest = [Event::Made(vm()), Event::Answered, Event::End("stop".to_owned()), Event::Gone];
    for event in life.into_iter().chain(rest) {
        phase = phase.after(event).expect("fits").expect("stays");
    }
    assert_eq!(phase.after(Event::Removed), Ok(None));
}

#[test]
fn a_second_start_is_told_apart_by_how_far_the_first_has_come() {
    let launching = Phase::Launching { candidate: 0, made: Made::Nothing };
    assert_eq!(launching.after(Event::Start), Err(Refusal::AlreadyStarting));
    assert_eq!(Phase::Running { vm: vm() }.after(Event::Start), Err(Refusal::AlreadyRunning));
    let over = Phase::Deleting { made: Made::Nothing, reason: String::new() };
    assert_eq!(over.after(Event::Start), Err(Refusal::Stopping));
}

proptest! {
    #[test]
    fn no_sequence_of_events_breaks_the_drawing(events in prop::collection::vec(any_event(), 0..40)) {
        let mut phase = Phase::Prepared;
        let (mut sent, mut over) = (false, None::<String>);
        for event in events {
            let after = phase.after(event.clone());
            if let Event::End(reason) = &event {
                prop_assert!(after.is_ok(), "stop is always accepted");
                over.get_or_insert_with(|| reason.clone());
            }
            let Ok(next) = after else { continue };
            sent |= matches!(event, Event::Attempt(_) | Event::Made(_));
            let Some(next) = next else {
                let nothing = Phase::Deleting { made: Made::Nothing, reason: over.unwrap_or_default() };
                prop_assert_eq!(phase, nothing, "leaves only when nothing is left");
                return Ok(());
            };
            match (&phase, &next) {
                (Phase::Deleting { reason: a, .. }, Phase::Deleting { reason: b, .. }) => {
                    prop_assert_eq!(a, b, "the first reason stays");
                }
                (Phase::Deleting { .. }, _) => prop_assert!(false, "left Deleting for {next:?}"),
                (Phase::Launching { .. }, Phase::Running { .. }) => {}
                (_, Phase::Running { .. }) => prop_assert!(false, "Running not from Launching"),
                (_, Phase::Prepared) => prop_assert!(false, "back to Prepared"),
                (Phase::Launching { candidate: a, .. }, Phase::Launching { candidate: b, .. }) => {
                    prop_assert!(a <= b, "candidates only go on");
                }
                (_, Phase::Deleting { made, reason }) => {
                    prop_assert_eq!(*made == Made::Nothing, !sent, "what was sent must be deleted");
                    prop_assert_eq!(Some(reason), over.as_ref());
                }
                _ => {}
            }
            prop_assert_eq!(over.is_some(), next.is_over());
            phase = next;
        }
    }

    #[test]
    fn every_phase_comes_back_from_json_as_it_was(events in prop::collection::vec(any_event(), 0..12)) {
        let mut phase = Phase::Prepared;
        for event in events {
            if let Ok(Some(next)) = phase.after(event) {
                phase = next;
            }
        }
        let text = serde_json::to_string(&phase).expect("writes");
        prop_assert_eq!(serde_json::from_str::<Phase>(&text).expect("reads"), phase);
    }
}

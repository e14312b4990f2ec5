//! What an edited list asks for, and which lists are refused.

use super::*;

fn list(lines: &[&str]) -> Vec<Member> {
    lines.iter().map(|line| Member::parse_line(line).unwrap()).collect()
}

fn config(id: u64, members: &[Member]) -> Config {
    let mut config = Config::tiny("unused".into());
    config.replica_id = id;
    config.members = members.to_vec();
    config
}

const THREE: [&str; 3] = ["1=a:1:2", "2=b:1:2", "3=c:1:2"];

#[test]
fn a_list_that_was_not_touched_asks_for_nothing() {
    let listed = list(&THREE);
    let grown = list(&["1=a:1:2", "2=b:1:2", "3=c:1:2", "4=d:1:2"]);
    let moved = list(&["2=b:1:2", "3=x:1:2"]);
    for current in [&listed, &grown, &moved] {
        assert_eq!(wanted(&listed, &listed, current), []);
        assert_eq!(check(&config(2, &listed), Some(&listed), current), Ok(()));
        assert_eq!(taken_over(&listed, &listed, current), listed);
    }
}

#[test]
fn what_was_edited_is_asked_for_until_it_is_so() {
    let before = list(&THREE);
    let listed = list(&["1=a:1:2", "2=b:9:2", "4=d:1:2"]);
    let mut current = before.clone();
    let [two, four] = [listed[1].clone(), listed[2].clone()];
    let expect = [
        WantedChange::Change(two.clone()),
        WantedChange::Add(four.clone()),
        WantedChange::Remove(3),
    ];
    assert_eq!(wanted(&before, &listed, &current), expect);
    assert_eq!(taken_over(&before, &listed, &current), before);
    current[1] = two;
    assert_eq!(wanted(&before, &listed, &current), expect[1..]);
    assert_eq!(taken_over(&before, &listed, &current), list(&["1=a:1:2", "2=b:9:2", "3=c:1:2"]));
    current.push(four);
    current.retain(|member| member.id != 3);
    assert_eq!(wanted(&before, &listed, &current), []);
    assert_eq!(taken_over(&before, &listed, &current), listed);
}

#[test]
fn a_member_is_known_by_whatever_name_its_own_list_has_for_it() {
    let current = list(&["1=a:1:2;0.0.0.0:5", "2=b:1:2;0.0.0.0:5"]);
    let listed = list(&["1=0.0.0.0:1:2", "2=b:1:2"]);
    assert_eq!(wanted(&[], &listed, &current), []);
}

#[test]
fn a_list_that_keeps_no_majority_is_refused() {
    let before = list(&THREE);
    for listed in [&["1=a:1:2", "4=d:1:2", "5=e:1:2"][..], &["1=a:1:2"]] {
        let error = check(&config(1, &list(listed)), Some(&before), &before).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ListError::Majority { kept: 1, of: 3, .. }), "{text}");
        assert!(text.contains("coord add") && text.contains("remove"), "{text}");
    }
    // Two of three stay, so any number may join.
    let grown = list(&["1=a:1:2", "2=b:1:2", "4=d:1:2", "5=e:1:2"]);
    assert_eq!(check(&config(1, &grown), Some(&before), &before), Ok(()));
}

#[test]
fn one_id_with_two_addresses_is_refused() {
    let before = list(&THREE);
    let [mut listed, mut current] = [before.clone(), before.clone()];
    listed.extend(list(&["4=d:1:2"]));
    current.extend(list(&["4=elsewhere:1:2"]));
    let text = check(&config(1, &listed), Some(&before), &current).unwrap_err().to_string();
    assert!(text.contains("server.4=d:1:2") && text.contains("coord add"), "{text}");
}

#[test]
fn a_member_without_a_list_is_refused_and_one_that_is_alone_is_not() {
    let current = list(&THREE);
    let text = check(&config(1, &[]), Some(&current), &current).unwrap_err().to_string();
    assert!(text.contains("1, 2, 3") && text.contains("coord remove"), "{text}");
    assert_eq!(check(&config(1, &[]), None, &current[..1]), Ok(()));
    assert_eq!(check(&config(1, &[]), None, &[]), Ok(()));
}

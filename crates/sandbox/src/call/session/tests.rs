use super::{Failure, Stop, idle};

#[test]
fn an_idle_exit_has_one_of_two_meanings() {
    assert_eq!(idle(0).expect("known"), Stop::Ready);
    assert_eq!(idle(1).expect("known"), Stop::Reply);
    for data in [2, 3, u32::MAX] {
        assert!(matches!(idle(data), Err(Failure::Protocol(_))), "{data}");
    }
}

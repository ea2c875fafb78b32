//! Calls that are refused, by the host before they are made or by the guest's function.

use vellum_sandbox::{CallOptions, Error, ErrorKind, GuestImage, Sandbox, Value};

use super::support::{add_to_counter, another_image, counter, in_each_mode, refused};

#[test]
fn an_unknown_name_is_refused_and_the_guest_not_entered() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let long = "x".repeat(1 << 20);
        for name in [
            "",
            "nope",
            "ADD",
            "add ",
            "add\0",
            "\u{1b}[2J",
            "ädd",
            &long,
        ] {
            let results = [
                sandbox.call::<_, ()>(name, ()),
                sandbox.function::<(), ()>(name).map(drop),
                sandbox
                    .call_dynamic(name, &[], &CallOptions::new())
                    .map(drop),
            ];
            for result in results {
                assert_eq!(refused(name, result).kind(), ErrorKind::UnknownFunction);
            }
            assert!(sandbox.is_ready());
        }
        assert_eq!(counter(&mut sandbox), 0);
    });
}

#[test]
fn wrong_types_are_refused_and_named() {
    in_each_mode(|lab| {
        let sandbox = lab.sandbox();
        let wrong: [(&str, Result<(), Error>); 8] = [
            ("no argument", sandbox.function::<(), i32>("add").map(drop)),
            (
                "one argument",
                sandbox.function::<(i32,), i32>("add").map(drop),
            ),
            (
                "three arguments",
                sandbox.function::<(i32, i32, i32), i32>("add").map(drop),
            ),
            (
                "another type",
                sandbox.function::<(i32, u32), i32>("add").map(drop),
            ),
            (
                "another width",
                sandbox.function::<(i64, i64), i32>("add").map(drop),
            ),
            (
                "another result",
                sandbox.function::<(i32, i32), u32>("add").map(drop),
            ),
            (
                "no result",
                sandbox.function::<(i32, i32), ()>("add").map(drop),
            ),
            (
                "bytes for a string",
                sandbox.function::<(&[u8],), String>("greet").map(drop),
            ),
        ];
        for (what, result) in wrong {
            let error = refused(what, result);
            assert_eq!(error.kind(), ErrorKind::TypeMismatch, "{what}");
            let text = error.to_string();
            assert!(
                text.contains("(i32, i32) -> i32") || text.contains("(string) -> string"),
                "{text}"
            );
        }
        assert!(sandbox.is_ready());
    });
}

#[test]
fn wrong_dynamic_arguments_are_refused() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let lists = [
            vec![],
            vec![Value::I32(1)],
            vec![Value::I32(1), Value::U32(1)],
            vec![Value::I32(1), Value::Unit],
            vec![Value::I32(1); 3],
            vec![Value::I32(1); 16],
            vec![Value::I32(1); 17],
            vec![Value::I32(1); 10_000],
        ];
        for args in lists {
            let what = format!("add of {} arguments", args.len());
            let error = refused(
                &what,
                sandbox.call_dynamic("add", &args, &CallOptions::new()),
            );
            assert_eq!(error.kind(), ErrorKind::TypeMismatch, "{what}");
            assert!(sandbox.is_ready());
        }
    });
}

#[test]
fn an_error_of_a_guest_function_arrives_with_its_text_and_leaves_the_sandbox_ready() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        add_to_counter(&mut sandbox, 3);
        for text in [
            "",
            "out of cheese",
            "äöü 🦀",
            "with \"quotes\" and {braces}",
        ] {
            let error = refused(text, sandbox.call::<_, ()>("fail", (text,)));
            assert_eq!(error.kind(), ErrorKind::GuestError);
            assert!(error.to_string().contains(text), "{error}");
            assert!(sandbox.is_ready());
        }
        assert_eq!(counter(&mut sandbox), 3);
    });
}

#[test]
fn the_text_of_a_guest_error_is_bounded() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let text = "€".repeat(100_000);
        let error = refused("fail", sandbox.call::<_, ()>("fail", (text.as_str(),)));
        assert_eq!(error.kind(), ErrorKind::GuestError);
        let length = error.to_string().len();
        assert!((900..1200).contains(&length), "{length}");
        assert!(sandbox.is_ready());
    });
}

#[test]
fn a_handle_of_another_image_is_refused() {
    in_each_mode(|lab| {
        let other = Sandbox::builder(&another_image())
            .host_functions(&super::support::host())
            .build(&lab.engine)
            .expect("built");
        let add = other.function::<(i32, i32), i32>("add").expect("found");
        let mut sandbox = lab.sandbox();
        let error = refused("add", add.call(&mut sandbox, (1, 2)));
        assert_eq!(error.kind(), ErrorKind::Incompatible);
        assert!(sandbox.is_ready());
    });
}

#[test]
fn a_handle_of_an_image_with_the_same_content_is_as_good_as_one_of_its_own() {
    in_each_mode(|lab| {
        let twin = GuestImage::from_bytes(vellum_test_guests::rust_user()).expect("valid");
        let other = Sandbox::builder(&twin)
            .host_functions(&super::support::host())
            .build(&lab.engine)
            .expect("built");
        let add = other.function::<(i32, i32), i32>("add").expect("found");
        let mut sandbox = lab.sandbox();
        assert_eq!(add.call(&mut sandbox, (1, 2)).expect("called"), 3);
    });
}

#[test]
fn an_argument_beyond_the_guests_heap_is_the_guests_error() {
    in_each_mode(|lab| {
        let mut sandbox = lab.sandbox();
        let bytes = vec![1_u8; 8 << 20];
        let error = refused(
            "echo_bytes",
            sandbox.call::<_, Vec<u8>>("echo_bytes", (&bytes[..],)),
        );
        assert_eq!(error.kind(), ErrorKind::GuestError);
        assert!(error.to_string().contains("too large"), "{error}");
        assert!(sandbox.is_ready());
        assert_eq!(sandbox.call::<_, i32>("add", (1, 2)).expect("called"), 3);
    });
}

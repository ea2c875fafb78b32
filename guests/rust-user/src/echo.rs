//! One function of each type that returns its argument.

use alloc::string::String;
use alloc::vec::Vec;

use vellum_guest::guest_function;

#[guest_function]
fn echo_bool(value: bool) -> bool {
    value
}

#[guest_function]
fn echo_i32(value: i32) -> i32 {
    value
}

#[guest_function]
fn echo_u32(value: u32) -> u32 {
    value
}

#[guest_function]
fn echo_i64(value: i64) -> i64 {
    value
}

#[guest_function]
fn echo_u64(value: u64) -> u64 {
    value
}

#[guest_function]
fn echo_f32(value: f32) -> f32 {
    value
}

#[guest_function]
fn echo_f64(value: f64) -> f64 {
    value
}

#[guest_function]
fn echo_string(value: String) -> String {
    value
}

#[guest_function]
fn echo_bytes(value: Vec<u8>) -> Vec<u8> {
    value
}

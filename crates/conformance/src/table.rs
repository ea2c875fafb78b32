//! The table of all checks. A check that is not named here does not exist.

use crate::check::{Check, Need};
use crate::suite;

/// From the one list come the table and the macro that makes a test of each entry. The first argument is a dollar sign, which the
/// inner macro's own variables need.
macro_rules! table {
    ($d:tt $($module:ident { $($check:ident [$($need:ident),*]),+ $(,)? })+) => {
        static CHECKS: &[Check] = &[
            $($(Check {
                name: concat!(stringify!($module), "::", stringify!($check)),
                needs: &[$(Need::$need),*],
                run: suite::$module::$check,
            },)+)+
        ];

        /// Makes a `#[test]` of every check, in modules as in [`checks`](crate::checks). The argument is a function that
        /// returns the engine to be tested, as a `&'static Subject`.
        #[macro_export]
        macro_rules! conformance_tests {
            ($d subject:path) => {
                $(mod $module {
                    $(#[test]
                    fn $check() {
                        let name = concat!(stringify!($module), "::", stringify!($check));
                        $crate::test($d subject(), name);
                    })+
                })+
            };
        }
    };
}

table! { $
    boots {
        a_real_mode_guest_runs_at_its_segment_and_offset [],
        a_flat_guest_finds_its_registers [],
        control_registers_are_those_of_the_boot_state [],
        control_registers_of_a_paged_guest [TwoLevelPaging],
        a_user_guest_begins_in_ring_three [],
        a_fresh_vcpu_boots_every_kind_in_turn [],
    }
    cancel {
        an_endless_loop_in_real_mode [],
        an_endless_loop_in_flat_mode [],
        an_endless_loop_in_long_mode [],
        an_endless_loop_in_long_mode_ring_three [],
        one_that_comes_before_the_run_counts [],
        one_that_comes_between_runs_counts [],
        one_that_was_withdrawn_does_not_count [],
        repeated_ones_are_one [],
        outputs_are_neither_lost_nor_repeated [],
        inputs_are_neither_lost_nor_repeated [],
        one_that_comes_while_an_input_waits [],
        the_handle_outlives_the_vm [],
        a_vm_may_move_to_another_thread [],
    }
    cpuid {
        ring_zero_sees_the_model [],
        flat_mode_sees_the_model [],
        ring_three_sees_the_model [],
        osxsave_follows_cr4 [Xsave],
        the_model_is_what_a_snapshot_can_hold [],
    }
    debug {
        an_execution_breakpoint_is_hit [],
        a_data_breakpoint_is_hit [],
        a_restored_guest_hits_no_breakpoint_of_another [],
        ring_zero_reads_and_writes_them [],
        a_breakpoint_at_a_host_address_does_not_hit_the_host [],
    }
    dirty {
        first_writes_are_reported [DirtyRing],
        writes_are_reported_in_a_bitmap [],
        no_first_write_of_a_random_history_is_lost [DirtyRing],
        no_write_of_a_random_history_is_lost_in_a_bitmap [],
        rearming_early_loses_nothing [],
        publishing_tables_loses_nothing [],
        reads_are_not_reported [],
        untracked_memory_is_not_reported [],
        every_tracked_range_is_reported [],
        a_range_that_was_unmapped_is_forgotten [],
        every_page_of_a_string_store_is_reported [],
        a_write_in_flat_mode_is_reported [],
        the_target_of_a_string_input_is_reported [],
        flags_that_the_processor_sets_in_tables_are_reported [],
        the_hosts_writes_are_not_reported [],
        more_pages_than_a_ring_holds_are_reported [],
    }
    exceptions {
        ring_three_faults_are_delivered [],
        an_undefined_instruction_in_flat_mode [],
        an_undefined_instruction_in_flat_mode_ring_three [],
        an_undefined_instruction_in_paged_mode [TwoLevelPaging],
        an_undefined_instruction_in_long_mode [],
        a_division_by_zero_in_real_mode [],
        a_division_by_zero_in_flat_mode [],
        a_division_by_zero_in_long_mode [],
        a_closed_gate_refuses_ring_three [],
        a_stack_that_is_not_canonical [],
        a_breakpoint_instruction_of_ring_three [],
        a_breakpoint_instruction_of_ring_zero [NativeRingZero],
        a_software_interrupt_of_ring_three [],
        a_software_interrupt_of_ring_zero [NativeRingZero],
        page_faults_of_ring_three [],
        page_faults_of_ring_zero [],
        a_handler_can_repair_and_return [],
        a_fault_without_a_handler_is_a_double_fault [],
        a_triple_fault_in_flat_mode [],
        a_triple_fault_in_paged_mode [TwoLevelPaging],
        a_triple_fault_in_long_mode [],
        a_triple_fault_in_long_mode_ring_three [],
        a_fault_without_a_stack_is_a_triple_fault [],
        the_trap_flag_traps [],
        a_real_mode_interrupt_returns [],
    }
    faults {
        absent_memory_is_read_in_real_mode [],
        absent_memory_is_written_in_real_mode [],
        absent_memory_is_read_in_flat_mode [],
        absent_memory_is_written_in_flat_mode [],
        absent_memory_is_read_in_paged_mode [TwoLevelPaging],
        absent_memory_is_written_in_paged_mode [TwoLevelPaging],
        absent_memory_is_read_in_long_mode [],
        absent_memory_is_written_in_long_mode [],
        absent_memory_is_read_in_long_mode_ring_three [],
        absent_memory_is_written_in_long_mode_ring_three [],
        every_kind_of_access_to_absent_memory_faults [],
        an_access_across_the_end_of_memory_faults_behind_it [],
        absent_memory_is_not_executed_in_flat_mode [],
        absent_memory_is_not_executed_in_long_mode [],
        absent_memory_is_not_executed_in_long_mode_ring_three [],
        read_only_memory_is_kept_from_ring_zero [ReadOnlyMemory],
        read_only_memory_is_kept_from_ring_three [ReadOnlyMemory],
        read_only_memory_is_kept_from_flat_mode [ReadOnlyMemory],
        every_kind_of_write_to_read_only_memory_faults [ReadOnlyMemory],
        host_and_guest_see_each_others_writes [],
        a_fault_names_the_physical_address [],
    }
    halts {
        halts_in_real_mode [],
        halts_in_flat_mode [],
        halts_in_paged_mode [TwoLevelPaging],
        halts_in_long_mode [],
        ring_three_may_not_halt [],
        ring_three_may_not_halt_in_flat_mode [],
        a_halted_guest_can_be_restored [],
    }
    hostile {
        huge_string_instructions_over_absent_memory [],
        a_string_store_that_leaves_memory [],
        broken_page_tables [],
        a_root_that_is_not_there [],
        tables_that_the_guest_edits_all_the_time [],
        code_that_writes_itself [],
        a_fault_that_is_never_repaired [],
        handlers_that_fault [],
        an_instruction_across_the_end_of_memory [],
        privileged_instructions_in_ring_three [],
        virtualization_instructions_of_ring_three [],
        virtualization_instructions_of_ring_zero [NativeRingZero],
        random_code [],
    }
    mapping {
        overlaps_are_refused [],
        neighbours_are_accepted [],
        unaligned_host_memory_is_refused [],
        only_exact_ranges_are_unmapped [],
        a_range_can_be_unmapped_and_mapped_anew [],
        a_cached_translation_does_not_outlive_its_range [],
        many_ranges_live_side_by_side [],
        the_highest_page_can_be_mapped [],
        a_missing_range_can_be_supplied [],
    }
    msrs {
        the_guest_reads_what_the_host_wrote [],
        the_host_reads_what_the_guest_wrote [],
        registers_of_the_special_group_are_reached [],
        undeclared_registers_cannot_be_read [MsrFilter],
        undeclared_registers_cannot_be_written [MsrFilter],
        ring_three_reaches_none [],
        swapgs_exchanges_the_bases [],
        syscall_arrives_in_ring_zero [NativeRingZero],
    }
    ports {
        outputs_in_real_mode [],
        outputs_in_flat_mode [],
        outputs_in_flat_mode_ring_three [],
        outputs_in_paged_mode [TwoLevelPaging],
        outputs_in_long_mode [],
        outputs_in_long_mode_ring_three [],
        inputs_in_real_mode [],
        inputs_in_flat_mode [],
        inputs_in_flat_mode_ring_three [],
        inputs_in_paged_mode [TwoLevelPaging],
        inputs_in_long_mode [],
        inputs_in_long_mode_ring_three [],
        a_value_given_is_the_value_read [],
        a_reply_is_due_exactly_once [],
        an_input_without_a_reply_can_be_abandoned [],
        no_port_is_served_behind_the_hosts_back [],
        ring_three_needs_the_bitmap_or_iopl [],
        a_state_written_after_an_output_begins_where_it_says [],
        thousands_of_outputs_are_neither_lost_nor_repeated [],
    }
    state {
        a_random_state_round_trips_in_real_mode [],
        a_random_state_round_trips_in_flat_mode [],
        a_random_state_round_trips_in_paged_mode [TwoLevelPaging],
        a_random_state_round_trips_in_long_mode [],
        a_random_state_round_trips_in_long_mode_ring_three [],
        a_random_state_survives_a_run_in_flat_mode [],
        a_random_state_survives_a_run_in_long_mode [],
        a_random_state_survives_a_run_in_long_mode_ring_three [],
        groups_are_independent [],
        a_boot_state_leaves_nothing_behind [],
        the_last_write_counts [],
        a_saved_state_goes_on_in_another_vm [],
        a_restored_guest_repeats_nothing [],
        ring_three_changes_no_other_groups [],
        what_hyper_v_refuses_is_refused [],
        states_that_a_processor_refuses_are_survived [],
        settling_is_idempotent [],
        a_pending_exception_is_delivered [],
        vector_state_is_clean_at_boot [],
    }
    strings {
        one_item_goes_out [],
        one_item_comes_in [],
        repeated_outputs_come_in_order [],
        a_repeated_access_is_not_taken_for_a_wide_one [],
        no_item_is_no_exit [],
        huge_counts_are_survived [],
    }
    tables {
        an_edit_is_seen_once_tables_are_published [],
        an_edit_is_seen_once_its_old_target_is_published [],
        an_edit_of_an_upper_table_is_seen_once_published [],
        a_page_taken_away_is_missed_once_published [],
        only_writable_memory_is_published [],
        a_guest_sees_its_own_edits [],
        large_pages_and_recursive_tables_work [],
        a_guest_turns_on_two_level_paging [TwoLevelPaging],
        code_that_the_host_replaced_is_the_code_that_runs [],
    }
    vectors {
        sse_in_ring_three [],
        sse_in_ring_zero [NativeRingZero],
        control_words_are_those_of_the_state [],
        a_fresh_vcpu_has_control_words [],
        x87_in_ring_three [],
        x87_in_ring_zero [NativeRingZero],
        an_unmasked_exception_is_raised [],
        avx_in_ring_three [Xsave],
        xcr0_is_that_of_the_state [Xsave],
        avx_that_is_switched_off_is_undefined [Xsave],
        ring_zero_writes_xcr0 [NativeRingZero, Xsave],
        registers_survive_exits_and_other_vms [],
    }
}

/// Every check, by module.
pub fn checks() -> &'static [Check] {
    CHECKS
}

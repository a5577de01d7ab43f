//! The list of all cases.

use futures::future::BoxFuture;

use crate::{
    clock, controller, driver, endurance, faults,
    fixture::Fixture,
    identity, lifecycle, mutual, outage, persistent, policy, protocol, radosgw, refresh, requests,
    resources, rotation, secrecy, seed, served, sharing,
    support::{namespace::Ids, plugin::Shown, server::Server},
    taint, tenants, userns, versions, views,
};

type Body = fn(Fixture) -> BoxFuture<'static, ()>;

/// One case: a claim, and the function that shows it true.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) on_minio: bool,
    body: Body,
}

impl Case {
    /// Runs the case with a fixture of its own.
    pub(crate) fn run(self, server: Server, ids: Ids, shown: Shown) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads can be started");
        runtime.block_on(async {
            let fixture = Fixture::showing(server, ids, shown).await;
            let case = (self.body)(fixture);
            let limit = std::time::Duration::from_mins(2);
            tokio::time::timeout(limit, case).await.expect("the case ends in two minutes");
        });
    }
}

macro_rules! cases {
    ($on_minio:literal: $($module:ident { $($name:ident),* $(,)? })*) => {
        [$($(Case {
            name: concat!(stringify!($module), "::", stringify!($name)),
            on_minio: $on_minio,
            body: |fixture| Box::pin($module::$name(fixture)),
        }),*),*]
    };
}

/// All cases, in the order of the modules.
#[expect(clippy::too_many_lines, reason = "a list")]
pub(crate) fn all() -> Vec<Case> {
    let anywhere = cases!(true:
        views {
            an_inline_volume_shows_the_prefix,
            owner_and_modes_are_as_asked,
            the_mount_group_owns_the_files,
            symlinks_lead_through_data,
            files_are_plain_in_the_other_layout,
            the_view_is_read_only_for_root,
            mtime_is_last_modified,
            a_disk_view_is_on_the_disk_store,
            a_tmpfs_view_never_touches_the_disk,
            several_sources_make_one_volume,
            a_single_key_is_a_file,
            a_version_id_selects_an_old_version,
            include_and_exclude_select,
            odd_keys_are_shown_or_reported,
            markers_are_empty_directories,
            large_objects_arrive_whole,
            an_empty_object_is_an_empty_file,
            a_prefix_does_not_match_its_siblings,
        }
        lifecycle {
            publish_twice_is_ok,
            other_arguments_are_refused,
            unpublish_leaves_nothing,
            unpublish_of_anything_is_ok,
            a_restart_touches_no_mount,
            missing_things_are_not_found,
            an_empty_prefix_may_be_allowed,
            bad_credentials_are_unauthenticated,
            stats_tell_bytes_and_inodes,
            eleven_pods_share_one_copy,
        }
        versions {
            an_earlier_state_is_shown,
            every_node_shows_the_same_state,
            a_rollback_is_a_moment,
            a_single_key_has_a_past,
            before_everything_there_is_nothing,
            the_future_is_refused,
            without_versioning_there_is_no_past,
            suspended_versioning_keeps_its_past,
            a_long_history_is_paged,
        }
        identity {
            a_pod_is_whom_its_token_names,
            tokens_in_the_context_need_trust,
            a_token_for_another_audience_is_refused,
            a_token_that_another_signed_is_refused,
            an_expired_token_is_told,
            credentials_are_renewed_with_the_newest_token,
            a_token_that_nobody_renews_ends_the_refresh_alone,
        }
        tenants {
            no_publish_leads_to_what_another_may_read,
            a_republish_as_another_shows_nothing_new,
        }
        persistent {
            a_claim_becomes_a_volume_of_many_pods,
            a_static_volume_needs_no_controller,
        }
        mutual {
            a_pair_opens_the_door,
            a_secret_may_bring_the_authority_too,
            a_bundle_of_a_secret_needs_no_pair,
            who_is_refused_is_told_which_keys_to_change,
            a_rotated_pair_is_used_at_once,
            a_bad_rotation_keeps_the_last_pair,
        }
    );
    let embedded = cases!(false:
        views {
            two_keys_at_one_path_are_refused,
        }
        requests {
            a_cold_publish_is_one_list_and_one_get_each,
            a_warm_publish_is_one_list,
            a_hundred_publishes_fetch_each_object_once,
            another_principal_asks_for_one_byte,
            a_proof_lasts_as_long_as_it_may,
            a_wrong_secret_gets_nothing_from_the_cache,
            a_customer_key_is_needed_and_never_shared,
            another_owner_costs_no_request,
            the_user_agent_names_the_pod,
            a_long_listing_is_paged,
            a_longer_listing_is_shared_out,
            what_a_longer_listing_asks_beside_is_not_needed,
            too_much_is_refused_before_anything_is_fetched,
            a_full_store_names_its_bytes,
            unused_blobs_make_room,
            those_who_wait_for_one_object_need_its_room_once,
            large_objects_are_asked_for_in_parts,
            many_large_objects_do_not_wait_for_each_other,
            a_key_cannot_ask_for_too_many_directories,
            owner_and_payer_go_with_every_request,
        }
        faults {
            passing_failures_are_retried,
            broken_bodies_are_fetched_again,
            broken_listings_are_asked_for_again,
            corrupt_bytes_are_never_shown,
            a_stalled_body_is_given_up,
            a_stalled_object_leaves_room_for_others,
            an_object_that_changes_is_listed_again,
            a_large_object_that_goes_is_listed_again,
            an_endpoint_that_is_down_is_unavailable,
            a_denied_prefix_is_permission_denied,
            an_archived_object_is_a_failed_precondition,
            a_slow_publish_answers_before_the_deadline_and_is_joined,
            unpublish_ends_a_publish,
            an_error_undoes_everything,
        }
        resources {
            a_full_disk_is_told_and_passes,
            a_disk_that_fills_up_meanwhile_is_told_and_passes,
            a_full_tmpfs_is_told_and_passes,
            want_of_descriptors_is_told_and_passes,
            a_read_only_disk_is_told_and_passes,
            a_start_on_a_read_only_disk_keeps_everything_else_working,
            odd_times_are_shown,
            a_refresh_without_room_is_told_and_passes,
        }
        lifecycle {
            a_kill_while_fetching_is_cleaned_up,
            a_reboot_is_survived,
            a_mount_without_record_is_adopted,
            a_lost_mount_is_made_again,
            a_foreign_mount_gives_way,
            lost_files_are_brought_again,
            one_bad_volume_stops_no_other,
            another_kubelet_directory_touches_nothing,
            a_full_store_is_served_after_a_restart,
            the_condition_tells_what_is_wrong,
            sigterm_is_bounded,
            sigterm_is_orderly_without_a_connection,
            sigterm_leaves_the_mounts,
            republish_is_ok_whatever_else_is_wrong,
        }
        outage {
            what_was_read_before_starts_a_pod,
            what_was_read_before_survives_a_reboot_on_disk,
        }
        refresh {
            an_overwritten_object_is_replaced_whole,
            objects_come_and_go,
            three_of_a_thousand_are_three_gets,
            an_unchanged_source_costs_one_list,
            a_volume_that_never_refreshes_asks_nothing,
            inotify_and_mtime_show_the_change,
            a_failed_refresh_keeps_the_revision_and_says_why,
            a_failing_endpoint_is_asked_less_and_less,
            a_source_that_suddenly_is_empty_is_a_failure,
            a_volume_that_grows_too_large_stays_as_it_is,
            an_object_that_changes_under_a_refresh_is_listed_again,
            new_credentials_are_used_at_once,
            credentials_that_s3_refuses_change_nothing,
            nothing_is_shown_that_new_credentials_may_not_read,
            a_restart_goes_on_where_it_was,
            other_credentials_after_a_restart_ask_for_everything,
            a_changed_pair_waits_until_it_has_settled,
            a_replaced_revision_stays_for_its_readers,
            a_sub_path_keeps_its_revision,
            unpublish_does_not_wait_for_a_refresh,
        }
        rotation {
            newer_content_is_never_taken_back,
            an_object_that_changes_does_not_end_a_trial,
            an_outage_does_not_end_a_trial,
            credentials_may_change_before_a_trial_is_through,
            what_started_from_before_heals_after_a_restart,
            what_was_read_before_keeps_to_the_limits,
            a_volume_that_is_too_large_costs_others_nothing,
            replaced_revisions_make_room,
            a_refusal_ends_what_was_read_before,
            what_started_from_before_is_proven_afterwards,
        }
        policy {
            a_changed_policy_counts_for_the_next_publish,
            a_withdrawn_policy_keeps_the_revision,
            changed_defaults_count_for_new_volumes_only,
            changed_limits_count_for_the_next_publish,
            changed_authorization_counts_from_then_on,
            a_bad_file_is_refused_and_the_old_one_stays,
            a_config_map_is_followed,
            keys_that_need_a_restart_are_named,
            a_namespace_has_so_many_volumes,
            a_namespace_has_so_many_bytes_of_each_store,
            a_refresh_keeps_to_the_limits_of_the_namespace,
            publishes_at_one_time_do_not_overshoot,
            a_forged_namespace_is_nobodys,
            what_was_read_before_keeps_to_the_limits_of_the_namespace,
        }
        protocol {
            all_problems_are_told_at_once,
            fields_are_required_in_order,
            what_is_not_offered_is_unimplemented,
            the_plugin_says_who_it_is,
            the_socket_is_private_and_guarded,
            bad_configuration_ends_with_64,
            a_state_directory_of_others_is_left_alone,
            metrics_and_health_are_served,
            targets_outside_the_kubelet_are_refused,
            no_volume_is_mounted_over_another,
            secrets_appear_nowhere,
            a_url_needs_the_policy,
            a_proxy_is_used,
        }
        persistent {
            access_modes_make_nothing_writable,
            mount_options_may_say_only_what_holds,
        }
        controller {
            the_same_claim_is_the_same_volume,
            a_name_belongs_to_one_volume,
            the_cluster_knows_which_names_are_taken,
            all_mistakes_of_a_class_are_told_at_once,
            what_no_volume_has_is_refused,
            rights_are_tried_with_the_provisioners_secret,
            an_endpoint_that_is_down_is_no_creation_under_way,
            a_public_bucket_is_asked_for_by_nobody,
            a_changed_policy_counts_for_the_next_claim,
            delete_of_anything_is_ok_and_touches_nothing,
            ids_are_verified,
            the_controller_says_who_it_is,
            a_bad_configuration_ends_the_controller_with_64,
        }
        taint {
            the_taint_goes_once_the_kubelet_knows_the_plugin,
            a_change_meanwhile_is_not_undone,
            a_refusal_is_tried_again_and_hurts_nothing,
            what_cannot_be_removed_ends_nothing,
            by_default_the_cluster_is_not_asked,
        }
        secrecy {
            a_leak_would_be_found,
            no_core_holds_a_secret,
        }
        tenants {
            what_was_read_before_is_for_who_read_it,
            rights_that_are_withdrawn_bring_nothing_new,
        }
        userns {
            a_pod_may_have_a_user_namespace,
        }
        sharing {
            by_default_all_pods_share,
            a_namespace_shares_with_no_other,
            who_is_of_no_certain_namespace_shares_with_nobody,
            a_changed_setting_moves_volumes_at_their_refresh,
            each_namespaces_copy_needs_room,
            a_volume_without_record_goes_on_in_its_namespace,
        }
        versions {
            small_pages_change_nothing,
            within_a_second_the_last_counts,
            a_moment_is_what_the_bucket_still_tells,
            a_moment_costs_one_listing,
            a_bucket_is_asked_only_if_its_history_is_silent,
            missing_rights_are_named,
            a_deleted_version_is_told,
            a_null_version_that_is_replaced_is_listed_again,
            broken_histories_are_asked_for_again,
            versions_need_not_fit_below_the_limit,
        }
        identity {
            many_pods_of_one_account_are_one_exchange,
            credentials_are_renewed_before_they_end,
            a_token_service_that_is_down_is_noticed_late,
            a_role_is_asked_for,
            aws_needs_a_role,
            a_token_goes_where_the_policy_says,
            nobody_reads_a_public_bucket,
            tokens_appear_nowhere,
        }
        driver {
            the_driver_reads_what_the_policy_grants,
            a_forged_namespace_grants_nothing,
            a_withdrawn_grant_keeps_the_revision,
            a_driver_without_credentials_says_so,
            the_drivers_credentials_are_found_and_renewed,
            the_drivers_web_identity_is_exchanged,
        }
        mutual {
            a_gateway_that_refuses_in_http_is_understood,
            a_pair_that_is_none_is_invalid,
            pods_with_different_pairs_share_nothing,
            nobody_may_show_a_pair,
            the_driver_may_show_a_pair,
            without_tls_a_pair_makes_no_difference,
            a_pair_goes_through_a_proxy,
            an_endpoint_that_says_nothing_is_given_up,
            a_pair_leads_nowhere_else,
            a_token_service_elsewhere_is_shown_nothing,
        }
    );
    anywhere.into_iter().chain(embedded).collect()
}

/// The cases that need what of these servers only MinIO has, or has in a form of its own.
pub(crate) fn on_minio_alone() -> Vec<Case> {
    let cases = cases!(true:
        views {
            encrypted_objects_are_files_like_others,
            a_long_prefix_is_shown_whole,
        }
        tenants {
            the_documented_policies_suffice,
        }
        clock {
            a_clock_that_jumps_hurts_nothing,
        }
        seed {
            a_rotation_reaches_running_pods,
            the_application_finds_its_certificates,
            a_bad_release_is_rolled_back,
            the_reader_may_read_and_nothing_else,
            new_keys_need_no_restart,
            a_service_account_needs_no_keys,
            claims_show_the_same,
        }
        mutual {
            the_endpoint_as_token_service_is_shown_the_pair,
        }
    );
    cases.to_vec()
}

/// The cases for Ceph's object gateway, which the other servers have in forms of their own.
pub(crate) fn on_radosgw() -> Vec<Case> {
    let cases = cases!(false:
        tenants {
            the_documented_policies_suffice,
        }
        views {
            a_long_prefix_is_shown_whole,
        }
        radosgw {
            an_inline_volume_shows_the_prefix,
            a_token_is_exchanged_for_a_role,
            a_customer_key_is_checked,
            nobody_reads_without_a_policy,
        }
    );
    cases.to_vec()
}

/// The cases whose volumes are shown as `fuse` views as well: all whose claims have a meaning there.
/// Twice: with content that comes when it is read, and with content that is there already.
pub(crate) fn over_fuse() -> Vec<Case> {
    let cases = cases!(false:
        views {
            an_inline_volume_shows_the_prefix,
            the_mount_group_owns_the_files,
            mtime_is_last_modified,
            several_sources_make_one_volume,
            two_keys_at_one_path_are_refused,
            a_single_key_is_a_file,
            a_version_id_selects_an_old_version,
            include_and_exclude_select,
            odd_keys_are_shown_or_reported,
            markers_are_empty_directories,
            an_empty_object_is_an_empty_file,
            a_prefix_does_not_match_its_siblings,
        }
        lifecycle {
            publish_twice_is_ok,
            other_arguments_are_refused,
            unpublish_of_anything_is_ok,
            a_restart_touches_no_mount,
            missing_things_are_not_found,
            an_empty_prefix_may_be_allowed,
            bad_credentials_are_unauthenticated,
            stats_tell_bytes_and_inodes,
            a_reboot_is_survived,
            a_foreign_mount_gives_way,
            one_bad_volume_stops_no_other,
            the_condition_tells_what_is_wrong,
        }
        versions {
            an_earlier_state_is_shown,
            every_node_shows_the_same_state,
            a_rollback_is_a_moment,
            a_single_key_has_a_past,
            before_everything_there_is_nothing,
            a_long_history_is_paged,
        }
        identity {
            a_pod_is_whom_its_token_names,
            an_expired_token_is_told,
        }
        requests {
            another_principal_asks_for_one_byte,
            a_wrong_secret_gets_nothing_from_the_cache,
            the_user_agent_names_the_pod,
            a_long_listing_is_paged,
            too_much_is_refused_before_anything_is_fetched,
            large_objects_are_asked_for_in_parts,
            owner_and_payer_go_with_every_request,
        }
        faults {
            broken_listings_are_asked_for_again,
            an_endpoint_that_is_down_is_unavailable,
            a_denied_prefix_is_permission_denied,
        }
        refresh {
            an_overwritten_object_is_replaced_whole,
            objects_come_and_go,
            inotify_and_mtime_show_the_change,
            a_failing_endpoint_is_asked_less_and_less,
            a_volume_that_grows_too_large_stays_as_it_is,
            a_restart_goes_on_where_it_was,
        }
        policy {
            changed_defaults_count_for_new_volumes_only,
            a_namespace_has_so_many_volumes,
        }
        protocol {
            secrets_appear_nowhere,
        }
        driver {
            the_driver_reads_what_the_policy_grants,
        }
        mutual {
            a_pair_opens_the_door,
            a_rotated_pair_is_used_at_once,
        }
    );
    cases.to_vec()
}

/// Likewise, those that look at what was never read before S3 had something else, or nothing.
pub(crate) fn over_warm_fuse() -> Vec<Case> {
    let cases = cases!(false:
        lifecycle {
            republish_is_ok_whatever_else_is_wrong,
        }
        refresh {
            a_source_that_suddenly_is_empty_is_a_failure,
            new_credentials_are_used_at_once,
        }
    );
    [over_fuse(), cases.to_vec()].concat()
}

/// The cases of `fuse` views alone.
pub(crate) fn served() -> Vec<Case> {
    let cases = cases!(false:
        served {
            a_publish_lists_and_a_read_gets,
            any_range_of_a_large_file_is_right,
            neighbours_of_a_small_file_come_along,
            extended_attributes_tell_the_version,
            a_replaced_object_is_stale_where_it_was_not_read,
            without_s3_what_is_here_is_read,
            broken_answers_are_never_read,
            a_read_waits_for_the_plugin_to_come_back,
            a_restart_asks_for_nothing_that_was_read,
            without_credentials_a_read_fails_in_time,
            a_keeper_that_is_back_is_told_again,
            a_mount_that_nobody_serves_is_replaced,
            unpublish_waits_for_no_reader,
            unpublish_works_while_nobody_serves,
            a_mount_whose_ledger_is_lost_is_given_up,
            what_does_not_apply_is_refused,
            what_is_read_counts_for_no_namespace,
        }
        endurance {
            a_read_outlives_an_orderly_stop,
            a_smaller_store_serves_what_is_open,
            a_stalled_answer_ends_the_wait,
            calls_that_race_leave_one_volume_or_none,
            credentials_that_s3_refuses_leave_reads_alone,
            names_at_the_limits_outlive_a_restart,
            namespaces_that_share_nothing_read_the_same,
            volumes_that_come_and_go_leave_nothing,
        }
    );
    cases.to_vec()
}

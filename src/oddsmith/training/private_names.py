"""The private names of transformers' ``Trainer`` on which ``transformers_adapter.py`` depends.

A test looks for each in the installed transformers, and for others in our sources.
"""

# What ``transformers_adapter.py`` overrides or calls.
PRIVATE_METHODS = (
    "_determine_best_metric",
    "_evaluate",
    "_finalize_training",
    "_get_grad_norm",
    "_get_output_dir",
    "_hp_search_setup",
    "_init_training_state",
    "_issue_warnings_after_load",
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_load_scaler",
    "_prepare_for_training",
    "_prepare_inputs",
    "_push_from_checkpoint",
    "_run_epoch",
    "_save",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
    "_track_num_input_tokens",
)
# Methods of ``Trainer`` that are never called here -> what to do instead.
BYPASSED_METHODS = {
    **dict.fromkeys(
        ("_get_train_sampler", "_get_dataloader"),
        "override get_train_dataloader, or order the rows and set train_sampling_strategy to sequential",
    ),
    "_get_eval_sampler": "override get_eval_dataloader",
    **dict.fromkeys(
        ("_set_signature_columns_if_needed", "_remove_unused_columns", "_get_collator_with_removed_columns"),
        "pass a data_collator",
    ),
    **dict.fromkeys(("_save_optimizer_and_scheduler", "_save_rng_state", "_save_scaler"), "save in a callback"),
    # The first is documented but not called any more, the others were methods before transformers 5.
    "create_optimizer_and_scheduler": "override create_optimizer and create_scheduler",
    **dict.fromkeys(("_rotate_checkpoints", "_sorted_checkpoints"), "set save_total_limit"),
}
PRIVATE_ATTRIBUTES = (
    "_globalstep_last_logged",
    "_initial_global_step",
    "_total_loss_scalar",
    "_tr_loss",
    "_train_batch_size",
)

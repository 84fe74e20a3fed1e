"""What `docs/reference/data-api.md` says, row by row, and the tests that show it.

A row is `(what, verdict, AWS, here, known, tests)`. The verdicts are those of `VERDICTS`.
*known* is where the word on AWS comes from: its service model, its user guide, what
users recorded (`seen`), or nowhere (`unknown`), in which case it is our choice.
"""

from __future__ import annotations

from typing import NamedTuple

VERDICTS = {
    "same": "the same as AWS",
    "better": "works here, where AWS fails or stops short; what works on AWS works the same",
    "different": "not the same, and why",
    "choice": "nobody outside AWS can know; ours is said here",
}

MODEL, GUIDE, SEEN, UNKNOWN = "service model", "user guide", "seen by users", "unknown"


class Row(NamedTuple):
    """One line of a table."""

    what: str
    verdict: str
    aws: str
    here: str
    known: str
    tests: tuple[str, ...]


_ANSWERS = "test_rds_answers.py::"
_TRANSACTIONS = "test_rds_transactions.py::"
_LIMITS = "test_rds_limits.py::"
_TYPES = "test_rds_types.py::"
_VALUES = "test_rds_values.py::"
_PARAMETERS = "test_rds_parameters.py::"
_METADATA = "test_rds_metadata.py::"
_BOTO = "test_boto3.py::"
_JS = "js/sdk.test.mjs::"
_ADA = "python/suite_aurora_data_api.py::"

MEMBERS = [
    Row("`resourceArn`, `secretArn`", "different", "name a cluster and a secret of the account",
        "looked up among the names and patterns of the configuration; what is not there is"
        " refused, and never an address to connect to", MODEL,
        (_ANSWERS + "test_names_are_looked_up_and_patterns_are_allowed",
         _BOTO + "test_a_foreign_arn_is_refused_before_the_database")),
    Row("`database`", "same", "chooses the database; in a transaction it must be the same one",
        "the same; the refusal names both", SEEN,
        (_TRANSACTIONS + "test_another_database_than_that_of_the_transaction_is_named",)),
    Row("`schema`", "better", "refused", "the `search_path` of the statement or transaction;"
        " refused with `compat`", GUIDE, (_LIMITS + "test_the_schema_member_is_refused",)),
    Row("`sql`", "better", "one statement of at most 65,536 characters",
        "one statement; its length is that of the request, and AWS's with `compat`", MODEL,
        (_LIMITS + "test_a_statement_is_at_most_65536_characters",
         _BOTO + "test_what_is_not_one_statement_is_refused")),
    Row("`parameters` (`name`, `value`, `typeHint`)", "same", "by name", "by name; see below",
        MODEL, (_PARAMETERS + "test_names_are_found_where_postgresql_would_find_them",)),
    Row("`transactionId`", "same", "runs inside the transaction", "the same", MODEL,
        (_BOTO + "test_a_transaction_is_committed",)),
    Row("`includeResultMetadata`", "same", "adds `columnMetadata`", "the same", MODEL,
        (_METADATA + "test_metadata_is_left_out_unless_it_is_asked_for",)),
    Row("`continueAfterTimeout`", "same", "the statement goes on after the timeout",
        "the same, up to the target's `continued_timeout`; it does not outlive the gateway", SEEN,
        (_TRANSACTIONS + "test_a_statement_may_continue_after_the_timeout",
         _TRANSACTIONS + "test_a_later_call_in_the_transaction_sees_what_continued",
         _TRANSACTIONS + "test_what_continues_ends_at_the_limit_of_the_target")),
    Row("`resultSetOptions` (`decimalReturnType`, `longReturnType`)", "same",
        "numbers as strings or numbers", "the same; arrays follow, which AWS does not say", GUIDE,
        (_TYPES + "test_numbers_follow_the_result_set_options",)),
    Row("`formatRecordsAs`", "same", "`JSON` gives `formattedRecords`",
        "the same; also for RETURNING", GUIDE,
        (_ANSWERS + "test_formatted_records_are_one_json_text",
         _ANSWERS + "test_equal_labels_are_refused_before_anything_is_written")),
    Row("`records`, `columnMetadata`, `numberOfRecordsUpdated`", "same",
        "rows, or a count", "there if PostgreSQL described rows, whatever the statement is", SEEN,
        (_ANSWERS + "test_members_depend_on_whether_there_is_a_row_description",)),
    Row("`numberOfRecordsUpdated` of CREATE TABLE AS, SELECT INTO, MOVE", "choice", "",
        "the number in PostgreSQL's command tag", UNKNOWN,
        (_ANSWERS + "test_members_depend_on_whether_there_is_a_row_description",
         _TRANSACTIONS + "test_a_cursor_pages_forwards_and_backwards")),
    Row("`generatedFields`", "same", "empty on PostgreSQL", "empty, but for batches", GUIDE,
        (_ANSWERS + "test_members_depend_on_whether_there_is_a_row_description",)),
    Row("`formattedRecords`", "same", "one JSON text, keys are labels, without blanks",
        "the same; how floats are spelled may differ", GUIDE,
        (_ANSWERS + "test_formatted_records_are_one_json_text",
         _VALUES + "test_formatted_records_hold_the_same_values")),
    Row("`parameterSets`", "same", "one run for each set; none, no run", "the same", SEEN,
        (_TRANSACTIONS + "test_no_sets_run_nothing_and_an_empty_set_runs_once",)),
    Row("`updateResults`", "better", "one for each set, always empty",
        "the first row that RETURNING gave; empty with `compat`", GUIDE,
        (_BOTO + "test_a_batch_runs_once_for_each_set",
         _LIMITS + "test_a_batch_returns_no_fields")),
    Row("a batch whose set fails", "better", "what is kept outside a transaction is not said",
        "nothing is kept, and the index of the set is told", UNKNOWN,
        (_BOTO + "test_a_batch_is_all_or_nothing",
         _TRANSACTIONS + "test_a_batch_says_which_set_failed",
         _TRANSACTIONS + "test_a_batch_names_the_set_whose_value_does_not_fit")),
    Row("`transactionStatus`", "same", "`Transaction Committed`, `Rollback Complete`", "the same",
        SEEN, (_JS + "a transaction commits, rolls back, and is gone afterwards",)),
    Row("ExecuteSql", "same", "not for these clusters", "refused", MODEL,
        (_ANSWERS + "test_execute_sql_is_refused",)),
    Row("unknown members, `null` members", "same", "ignored", "ignored", SEEN,
        (_ANSWERS + "test_unknown_and_empty_members_are_ignored",)),
    Row("media type, compression", "same", "any; never compressed", "the same", SEEN,
        (_ANSWERS + "test_the_media_type_of_a_request_does_not_matter",
         _ANSWERS + "test_nothing_is_compressed")),
]  # fmt: skip

PARAMETERS = [
    Row("`isNull`", "same", "NULL of no type", "the same", SEEN,
        (_TYPES + "test_null_and_the_empty_array_of_every_type",)),
    Row("`booleanValue`, `doubleValue`, `blobValue`", "same", "bool, float8, bytea",
        "the same, and any type that takes the value where one is wanted", SEEN,
        (_VALUES + "test_values_keep_their_kind_where_nothing_tells_the_type",)),
    Row("`longValue`", "better", "always int8: functions of int4 are not found",
        "what the place wants; int8 with `compat`", SEEN,
        (_BOTO + "test_a_long_goes_into_every_column_of_numbers",
         _LIMITS + "test_values_have_the_types_that_aws_binds")),
    Row("`stringValue`", "better", "always text: uuid, enum, jsonb, timestamptz need a cast",
        "what the place wants; text where it says nothing, and with `compat`", SEEN,
        (_PARAMETERS + "test_strings_need_no_cast",
         _LIMITS + "test_values_have_the_types_that_aws_binds",
         _LIMITS + "test_the_casts_and_hints_that_aws_needs_work")),
    Row("`arrayValue` (`booleanValues`, `longValues`, `doubleValues`, `stringValues`,"
        " `arrayValues`)", "better", "refused",
        "an array: empty, with NULLs, nested; refused with `compat`", SEEN,
        (_PARAMETERS + "test_any_of_a_list",
         _PARAMETERS + "test_lists_with_nulls_and_nested_lists_bind",
         _LIMITS + "test_arrays_are_no_parameters")),
    Row("no member, or several, in a value", "same", "refused", "refused, by name", SEEN,
        (_JS + "a union that the SDK lets through malformed is refused by name",)),
    Row("hints `DATE`, `TIME`, `TIMESTAMP`, `DECIMAL`, `UUID`, `JSON`", "better",
        "the documented form of each", "those, and `T`, `Z`, offsets, up to nine digits", GUIDE,
        (_PARAMETERS + "test_hints_take_all_documented_forms_and_more",
         _PARAMETERS + "test_what_a_hint_cannot_read_is_refused")),
    Row("`JSON` binds as", "choice", "", "jsonb, and json or text where that is wanted", UNKNOWN,
        (_BOTO + "test_a_hinted_value_goes_into_a_column_of_another_type",)),
    Row("names of digits; casts behind a name; quotes and comments", "same",
        "found; kept; left alone", "the same", SEEN,
        (_PARAMETERS + "test_names_are_found_where_postgresql_would_find_them",)),
    Row("a name used twice", "better", "bound twice: GROUP BY on it fails",
        "one value; twice with `compat`", SEEN,
        (_PARAMETERS + "test_names_are_found_where_postgresql_would_find_them",
         _LIMITS + "test_each_occurrence_of_a_name_is_bound_by_itself")),
    Row("slices such as `a[1:2]`", "better", "taken for parameters",
        "slices; refused with `compat`", SEEN,
        (_PARAMETERS + "test_names_are_found_where_postgresql_would_find_them",
         _LIMITS + "test_slices_are_taken_for_parameters")),
    Row("`:name` inside dollar quotes", "different", "silently replaced",
        "left alone, with `compat` too: nobody can want it replaced", SEEN,
        (_PARAMETERS + "test_names_are_found_where_postgresql_would_find_them",)),
    Row("a name without a value", "same", "`Cannot find parameter: …`", "the same", SEEN,
        (_PARAMETERS + "test_a_name_without_any_value_is_named",
         _BOTO + "test_a_missing_parameter_is_named")),
    Row("a value that nothing uses", "choice", "", "ignored", UNKNOWN,
        (_PARAMETERS + "test_names_are_found_where_postgresql_would_find_them",)),
    Row("a name given twice", "choice", "", "refused", UNKNOWN,
        (_PARAMETERS + "test_parameters_that_make_no_sense_are_refused",)),
]  # fmt: skip

VALUES = [
    Row("`bool`", "same", "`booleanValue`", "the same", GUIDE,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",)),
    Row("`int2`, `int4`, `int8`, `oid`", "same", "`longValue`", "the same", GUIDE,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",)),
    Row("`float4`, `float8`", "same", "`doubleValue`, fewest digits", "the same", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _VALUES + "test_a_row_of_any_values_is_written_and_read_back")),
    Row("NaN and infinite floats", "choice", "", "`doubleValue`, as the strings that both SDKs"
        " turn into numbers", UNKNOWN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",)),
    Row("`numeric`", "same", "`stringValue`, scale kept", "the same; `NaN` stays a string", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",)),
    Row("`text`, `varchar`, `bpchar`, `name`, enums such as `mood`", "same", "`stringValue`",
        "the same", GUIDE, (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
                            _LIMITS + "test_types_that_aws_returns")),
    Row("`bytea`", "same", "`blobValue`", "the same", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _BOTO + "test_a_large_blob_makes_the_round_trip")),
    Row("`uuid`, `inet`, `cidr`", "same", "`stringValue`", "the same", GUIDE,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _LIMITS + "test_types_that_aws_returns")),
    Row("`json`, `jsonb`", "better", "`stringValue` without blanks; large numbers break",
        "without blanks, numbers as they are", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",)),
    Row("`date`, `time`, `timestamp`", "same", "`stringValue`, PostgreSQL's text", "the same"
        " (users saw fractions of none, three or six digits, and others saw zeros cut)", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",)),
    Row("`timestamptz`", "same", "`stringValue` in UTC without a zone", "the same", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",)),
    Row("dates and timestamps that are infinite", "better", "`InternalFailure`",
        "`infinity`; `InternalFailure` with `compat`, as a 400 that no SDK repeats", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _LIMITS + "test_infinite_moments_fail_without_a_word")),
    Row("`interval`, `money`, `char`, `xml`, `jsonpath`, `macaddr`, `macaddr8`, `bit`, `varbit`",
        "better", "refused", "`stringValue`, PostgreSQL's text (`bit(1)`: `booleanValue`);"
        " refused with `compat`", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _LIMITS + "test_types_that_aws_cannot_return",
         _TYPES + "test_forms_that_no_column_has")),
    Row("`timetz`", "better", "refused", "the time in UTC; refused with `compat`", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _LIMITS + "test_types_that_aws_cannot_return")),
    Row("`point`, `lseg`, `path`, `box`, `polygon`, `line`, `circle`", "better", "refused",
        "PostgreSQL's text; refused with `compat`", GUIDE,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _LIMITS + "test_types_that_aws_cannot_return")),
    Row("`int4range`, `numrange`", "same", "text, as a test of a library shows", "the same", SEEN,
        (_LIMITS + "test_types_that_aws_returns",)),
    Row("`int8range`, `daterange`, `tsrange`, `tstzrange` and all multiranges"
        " (`int4multirange`, `int8multirange`, `nummultirange`, `datemultirange`, `tsmultirange`,"
        " `tstzmultirange`), ranges of one's own (`floats`, `floats_multi`)", "better", "refused",
        "PostgreSQL's text; refused with `compat`", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _LIMITS + "test_types_that_aws_cannot_return")),
    Row("`regclass`, `regtype`, `regproc`, `regprocedure`, `regoper`, `regoperator`,"
        " `regcollation`, `regrole`, `regnamespace`, `regconfig`, `regdictionary`, `regdatabase`",
        "better", "refused", "PostgreSQL's text; refused with `compat`", SEEN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _LIMITS + "test_types_that_aws_cannot_return")),
    Row("`tsvector`, `tsquery`, `pg_lsn`, `tid`, `xid`, `xid8`, `cid`, `oid8`, `pg_snapshot`,"
        " `txid_snapshot`, `refcursor`, `aclitem`", "better", "not listed",
        "PostgreSQL's text; refused with `compat`", GUIDE,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",)),
    Row("`int2vector`, `oidvector`", "better", "not listed", "`longValues`; refused with `compat`",
        UNKNOWN, (_TYPES + "test_every_scalar_is_the_field_that_is_documented",)),
    Row("composites such as `pair`, `pairs`, `bare` and rows of tables", "better", "not listed",
        "PostgreSQL's text; refused with `compat`", GUIDE,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _LIMITS + "test_types_that_aws_cannot_return")),
    Row("domains such as `whole`, `stamp`, `raw`, `ids`, `nested_ids`, `cardinal_number`,"
        " `character_data`, `sql_identifier`, `time_stamp`, `yes_or_no`", "same",
        "as their base type", "the same", UNKNOWN,
        (_TYPES + "test_every_scalar_is_the_field_that_is_documented",
         _TYPES + "test_a_list_goes_into_a_domain_over_an_array")),
    Row("`void`", "choice", "", "an empty `stringValue`", UNKNOWN,
        (_TYPES + "test_forms_that_no_column_has",)),
    Row("arrays of the types that AWS lists", "same",
        "the member of the elements' kind, NULL as null, an empty list for none", "the same", SEEN,
        (_TYPES + "test_every_array_holds_its_elements_and_nulls",
         _LIMITS + "test_types_that_aws_returns")),
    Row("arrays of all other types", "better", "refused",
        "strings; of bytea its hex text; refused with `compat`", SEEN,
        (_TYPES + "test_every_array_holds_its_elements_and_nulls",
         _LIMITS + "test_types_that_aws_cannot_return")),
    Row("`numeric[]`", "choice", "", "`stringValues`; `doubleValues` with `DOUBLE_OR_LONG`",
        UNKNOWN, (_TYPES + "test_numbers_follow_the_result_set_options",)),
    Row("arrays of several dimensions", "better", "refused",
        "`arrayValues`; refused with `compat`", SEEN,
        (_TYPES + "test_forms_that_no_column_has",
         _LIMITS + "test_arrays_of_several_dimensions_are_refused")),
]  # fmt: skip

METADATA = [
    Row("`label`, `name`, `typeName`, `type`, `precision`, `scale`, `isSigned`,"
        " `isCaseSensitive`, `isCurrency`, `isAutoIncrement`, `schemaName`", "same",
        "the values of the PostgreSQL JDBC driver", "the same", SEEN,
        (_METADATA + "test_every_member_of_every_type",)),
    Row("`tableName`, `nullable` of joins, expressions, aliases and views", "same",
        "of the column's table; unknown for an expression", "the same", SEEN,
        (_METADATA + "test_joins_expressions_and_aliases",
         _METADATA + "test_a_view_is_the_table_of_its_columns")),
    Row("`arrayBaseColumnType`", "choice", "", "the JDBC code of the elements", UNKNOWN,
        (_METADATA + "test_every_member_of_every_type",)),
    Row("a result without rows", "same", "described", "described", SEEN,
        (_METADATA + "test_whatever_returns_rows_is_described_also_when_there_are_none",)),
    Row("after DDL", "same", "asked each time", "kept for a second at the most, and not past DDL"
        " that goes through the gateway", SEEN,
        (_METADATA + "test_ddl_changes_what_is_said_at_once",
         _METADATA + "test_ddl_of_a_transaction_counts_when_it_commits",
         _METADATA + "test_ddl_behind_the_gateways_back_is_noticed")),
]  # fmt: skip

ERRORS = [
    Row("`DatabaseErrorException`", "same", "every error of PostgreSQL", "the same, never another",
        MODEL, (_BOTO + "test_sql_errors_have_the_known_form",
                _ANSWERS + "test_an_sql_error_is_sent_once_and_a_full_target_again")),
    Row("its text", "same", "`ERROR: …; Hint: …; Position: n; SQLState: xxxxx`",
        "the same, on one line; detail and context stay out", SEEN,
        (_ANSWERS + "test_the_text_of_an_error_is_one_line_of_known_form",
         _ADA + "test_errors_have_their_class_and_code")),
    Row("Position", "better", "in which text is not known", "in the caller's own SQL", UNKNOWN,
        (_PARAMETERS + "test_positions_are_those_of_the_callers_text",)),
    Row("SQLSTATE, constraint, table, column by themselves", "better", "not there",
        "members of the error in JavaScript, headers in boto3", UNKNOWN,
        (_ANSWERS + "test_headers_tell_the_parts_of_an_error",
         _JS + "an SQL error is its class and carries its parts")),
    Row("`BadRequestException`", "same", "ExecuteSql, a body that is no JSON", "the same", UNKNOWN,
        (_ANSWERS + "test_execute_sql_is_refused", _ANSWERS + "test_a_body_that_cannot_be_read")),
    Row("`ValidationException` (not in the model)", "same",
        "several statements, missing parameters", "the same, and all malformed members", SEEN,
        (_BOTO + "test_what_is_not_one_statement_is_refused",
         _PARAMETERS + "test_parameters_that_make_no_sense_are_refused")),
    Row("`StatementTimeoutException` with `dbConnectionId`", "same", "after 45 seconds",
        "the same; both limit and default can be set", MODEL,
        (_TRANSACTIONS + "test_a_timeout_cancels_and_keeps_nothing",
         _JS + "a statement that ran out of time names its backend and is not sent again")),
    Row("`UnsupportedResultException`", "same", "too large, or of a type that it cannot return",
        "only where a result must be held, such as RETURNING; else with `compat`", SEEN,
        (_ANSWERS + "test_a_result_that_must_be_held_has_a_limit",
         _LIMITS + "test_types_that_aws_cannot_return")),
    Row("`TransactionNotFoundException`", "same", "404, the id and a reason", "the same", GUIDE,
        (_BOTO + "test_a_finished_transaction_is_not_found",)),
    Row("`AccessDeniedException`", "same", "403", "403, also for a name that is not configured",
        MODEL, (_BOTO + "test_a_foreign_arn_is_refused_before_the_database",)),
    Row("signature errors (`InvalidSignatureException`, `UnrecognizedClientException`)", "same",
        "403", "403", UNKNOWN, (_BOTO + "test_who_is_not_known_is_refused",)),
    Row("`DatabaseUnavailableException`", "same", "504", "504, if nothing was executed", MODEL,
        (_ANSWERS + "test_a_database_that_is_away_is_unavailable",)),
    Row("`ServiceUnavailableError`", "same", "503", "503: no connection came free; SDKs try again",
        MODEL, (_ANSWERS + "test_an_sql_error_is_sent_once_and_a_full_target_again",)),
    Row("`InternalServerErrorException`", "same", "500", "500: a defect, nothing was executed",
        MODEL, ("../api/rds_data/test_failures.py::test_each_error_is_an_exception_of_the_model",)),
    Row("5xx and throttling", "same", "SDKs send the request again",
        "only if it surely had no effect", SEEN,
        ("../api/rds_data/test_failures.py::test_what_an_sdk_would_repeat_had_surely_no_effect",)),
    Row("`SecretsErrorException`, `InvalidSecretException`", "same",
        "the secret cannot be fetched, or holds no login",
        "the same, for logins whose secret is in Secrets Manager", MODEL,
        ("test_secrets.py::test_a_secret_that_is_no_good_is_told_without_its_name",)),
    Row("`DatabaseResumingException`, `DatabaseNotFoundException`,"
        " `HttpEndpointNotEnabledException`, `InvalidResourceStateException`,"
        " `ForbiddenException`, `NotFoundException`", "different", "of clusters that sleep or are"
        " being made; of names",
        "never sent: nothing here sleeps, and what is not configured is `AccessDeniedException`",
        MODEL,
        (_ANSWERS + "test_the_model_has_no_exception_that_is_not_accounted_for",)),
    Row("request ids", "same", "in every answer", "in every answer", MODEL,
        (_BOTO + "test_every_answer_has_a_request_id",)),
    Row("an answer that breaks off", "same", "SDKs see it", "its connection is cut, and it never"
        " ends as valid JSON", UNKNOWN,
        (_ANSWERS + "test_a_stream_that_breaks_is_never_taken_for_an_answer",)),
    Row("an error at COMMIT", "same", "an error", "an error: the 200 of a write follows its COMMIT",
        UNKNOWN, (_ANSWERS + "test_what_was_refused_at_commit_was_never_a_success",)),
]  # fmt: skip

TRANSACTIONS = [
    Row("idle for 3 minutes; 24 hours old", "same", "rolled back, then not found",
        "the same; both can be set", MODEL,
        (_TRANSACTIONS + "test_the_limits_are_those_of_aws_unless_they_are_configured",
         _TRANSACTIONS + "test_a_transaction_past_its_limit_is_rolled_back_and_not_found")),
    Row("after an SQL error", "same", "25P02 until the rollback", "the same", SEEN,
        (_TRANSACTIONS + "test_a_failed_transaction_refuses_all_but_its_rollback",)),
    Row("COMMIT of a failed transaction", "choice", "", "an error with 25P02; it is rolled back",
        UNKNOWN, (_TRANSACTIONS + "test_the_commit_of_a_failed_transaction_is_no_success",)),
    Row("parallel calls on one id", "better", "`Transaction is still running a query`",
        "they wait for each other, in order; AWS's answer with `compat`", GUIDE,
        (_TRANSACTIONS + "test_calls_on_one_transaction_run_in_the_order_of_their_arrival",
         _LIMITS + "test_a_second_call_in_a_busy_transaction_is_refused_at_once")),
    Row("savepoints, cursors, SET TRANSACTION, temporary tables, PREPARE", "same", "as SQL",
        "as SQL", SEEN,
        (_TRANSACTIONS + "test_a_savepoint_saves_a_failed_transaction",
         _TRANSACTIONS + "test_a_cursor_pages_forwards_and_backwards",
         _TRANSACTIONS + "test_isolation_is_set_as_sql",
         _TRANSACTIONS + "test_session_state_lasts_for_the_transaction_alone")),
    Row("BEGIN, COMMIT, ROLLBACK as SQL", "choice", "", "refused", UNKNOWN,
        (_TRANSACTIONS + "test_transaction_control_as_sql_is_refused",)),
    Row("a timeout inside", "same", "the transaction has failed", "the same", SEEN,
        (_TRANSACTIONS + "test_a_timeout_in_a_transaction_leaves_it_failed",)),
    Row("a result that is too large inside", "same", "the transaction stays open (seen later than"
        " the contrary)", "stays open, with `compat`", SEEN,
        (_LIMITS + "test_a_result_past_the_limit_leaves_the_transaction_alive",)),
    Row("VACUUM, CREATE INDEX CONCURRENTLY", "same", "without an id", "without an id", SEEN,
        (_TRANSACTIONS + "test_what_cannot_run_in_a_transaction_block_runs_alone",)),
]  # fmt: skip

LIMITS = [
    Row("size of a result", "better", "1 MiB: octets, 2 a row, 4 a field",
        "none for a read, which is streamed; `response_bytes` for RETURNING; AWS's with `compat`",
        SEEN, (_BOTO + "test_a_result_of_many_megabytes_arrives_whole",
               _LIMITS + "test_a_result_is_at_most_one_megabyte",
               _LIMITS + "test_a_write_whose_result_is_refused_has_written_nothing")),
    Row("size of a row", "same", "64 KiB in older guides, and yet larger ones were seen", "none",
        SEEN, (_LIMITS + "test_a_large_row_is_no_reason_to_refuse",)),
    Row("size of `formattedRecords`", "better", "10 MB", "none; AWS's with `compat`", GUIDE,
        (_LIMITS + "test_formatted_records_are_at_most_ten_megabytes",)),
    Row("size of a request", "same", "4 MiB", "4 MiB, `request_bytes`; a 413", MODEL,
        (_LIMITS + "test_a_request_is_at_most_four_megabytes",)),
    Row("lengths of names", "better", "11 to 100 for ARNs, 192 for a transaction's id",
        "any; AWS's with `compat`", MODEL,
        (_LIMITS + "test_names_have_the_lengths_of_the_model",)),
]  # fmt: skip

TABLES = {
    "Members of requests and answers": MEMBERS,
    "Values in": PARAMETERS,
    "Values out": VALUES,
    "`columnMetadata`": METADATA,
    "Errors": ERRORS,
    "Transactions": TRANSACTIONS,
    "Limits": LIMITS,
}

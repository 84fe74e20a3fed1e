"""COPY and transaction control never pass; all else is given a way that suits it."""

import re

import postgast
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.classify import Path, classify, fingerprint, is_dml
from gateway.core.errors import EmptyStatement, SeveralStatements, StatementRefused
from gateway.core.lexer import tokens

READS = """
select 1
values (1), (2)
table t
show all
(select 1) union (select 2)
((((select 1))))
with a as (select 1) select * from a
with a as (select 'insert into t', "delete", $$update$$ /* merge */ from t) select * from a
explain select 1
explain insert into t values (1)
explain analyze select 1
explain analyze verbose (select 1)
explain (analyze, buffers) select 1
explain (analyze) with a as (select 1) select * from a
explain (costs off) delete from t
explain (select 1)
select * into t from u
select 1 for update
""".strip().splitlines()

WRITES = (
    """
insert into t values (1)
update t set a = 1
delete from t
merge into t using u on t.a = u.a when matched then delete
with a as (insert into t values (1) returning *) select * from a
with a as (select 1) delete from t
with a as (select 1) select * from t for update
explain analyze insert into t values (1)
explain analyse verbose update t set a = 1
explain (analyze, costs off) delete from t
explain ("analyze") delete from t
explain (analyze) create table t as select 1
explain analyze execute p
explain (analyze) with a as (delete from t returning *) select * from a
create table t (a int)
create index i on t (a)
drop index i
alter table t add a int
alter database d set work_mem = '1MB'
reindex table t
reindex (verbose) index i
cluster t
cluster verbose t using i
call p()
do $$ begin commit; end $$
lock table t
listen a
notify a
analyze t
prepare p as select 1
execute p
deallocate p
declare c cursor for select 1
fetch all from c
set a.b = 'c'
set local a.b = 'c'
set session characteristics as transaction read only
reset all
discard temp
truncate t
grant select on t to u
create function copy() returns int language sql return 1
refresh materialized view v
create rule r as on insert to t do also (select 1; select 2)
create database_like
create function f() returns int language sql begin atomic select 1; select 2; end
create or replace procedure p() language sql begin atomic insert into t values (1); end;
create function f() returns int begin atomic select case when a then 1 end; select case 1 when 2 \
then case 3 when 4 then 5 end end; end
create function f() returns int begin atomic select 1 end; select 2 as end; end
create function f(a int default (1)) returns int begin atomic end
""".strip()
    .replace("\\\n", "")
    .splitlines()
)

BARE = """
vacuum
vacuum (full) t
create index concurrently i on t (a)
create unique index concurrently i on t (a)
create index concurrently on t (a)
drop index concurrently i
drop index concurrently if exists i
reindex index concurrently i
reindex (concurrently) table t
reindex (verbose) table concurrently t
reindex database d
reindex system d
reindex schema s
reindex (verbose) database d
create database d
drop database if exists d
create tablespace s location '/s'
drop tablespace s
alter system set work_mem = '1MB'
alter database d set tablespace s
alter table t detach partition u concurrently
create subscription s connection '' publication p
drop subscription s
cluster
cluster;
cluster verbose
cluster (verbose)
discard all
""".strip().splitlines()

SAVEPOINTS = """
savepoint a
release a
release savepoint a
rollback to a
rollback to savepoint a
rollback work to a
rollback transaction to savepoint a
set transaction read only
set transaction isolation level serializable
set local transaction read only
""".strip().splitlines()

REFUSED = """
copy t to stdout
copy t from stdin
copy (select 1) to stdout
copy t from program 'true'
COPY t FROM '/t'
begin
begin transaction read write
begin atomic
start transaction
commit
commit and chain
commit work
commit prepared 'a'
end
end transaction
abort
abort work
rollback
rollback work
rollback transaction
rollback and chain
rollback work and no chain
rollback prepared 'a'
prepare transaction 'a'
""".strip().splitlines()

EVERY_PATH = [
    *((sql, Path.READ) for sql in READS),
    *((sql, Path.WRITE) for sql in WRITES),
    *((sql, Path.BARE) for sql in BARE),
    *((sql, Path.SAVEPOINT) for sql in SAVEPOINTS),
]
NOISE = st.lists(
    st.sampled_from(
        [
            *(
                " ",
                "\n",
                "\t",
                "\f",
                "\r\n",
                ";",
                "; ;",
                "--\n",
                "-- ;\n",
                "--x\r",
                "-- /*\n",
                "--'\n",
            ),
            *("/**/", "/* ; */", "/* /* */ */", "/*/*/**/*/*/", "/* -- */", "/* ' */", "/* $$ */"),
        ]
    ),
    max_size=5,
).map("".join)
SPACES = NOISE.map(lambda noise: noise.replace(";", " ") or " ")


@pytest.mark.parametrize(("sql", "path"), EVERY_PATH)
def test_a_statement_takes_the_way_that_suits_it(sql: str, path: Path) -> None:
    for text in (sql, sql.upper(), f" ;\n/* ; */;{sql} ; -- ;\n;"):
        assert classify(text).path is path
        assert classify(text, tokens(text)) == classify(text)


@pytest.mark.parametrize("sql", REFUSED)
@pytest.mark.parametrize(
    "wrapped",
    ["{}", "{};", ";;{}", " ; ; {} ;", "/* /* */ */{}", "--\r{}", "({}", "(({}))", ";(;{}", "\f{}"],
)
def test_copy_and_transaction_control_never_pass(sql: str, wrapped: str) -> None:
    for text in (sql, sql.upper(), sql.title()):
        with pytest.raises(StatementRefused) as caught:
            classify(wrapped.format(text))
        assert caught.value.hint


@settings(max_examples=300, deadline=None)
@given(NOISE, st.sampled_from(REFUSED), st.data())
def test_no_comment_hides_what_is_refused(noise: str, sql: str, data: st.DataObject) -> None:
    words = sql.split(" ")
    gaps = [data.draw(SPACES) for _ in words]
    text = noise + "".join(word + gap for word, gap in zip(words, gaps, strict=True))
    with pytest.raises(StatementRefused):
        classify(text)


def holds_what_is_refused(parsed: postgast.ParseResult) -> bool:
    for statement in parsed.stmts:
        node = statement.stmt
        if node.HasField("copy_stmt"):
            return True
        if node.HasField("transaction_stmt"):
            kind = node.transaction_stmt.kind
            allowed = ("TRANS_STMT_SAVEPOINT", "TRANS_STMT_RELEASE", "TRANS_STMT_ROLLBACK_TO")
            kinds = postgast.pg_query_pb2.TransactionStmtKind
            if kind not in [kinds.Value(name) for name in allowed]:
                return True
    return False


PARSED = [sql for sql in READS + WRITES + BARE + SAVEPOINTS + REFUSED if sql != "begin atomic"]
WORDS = st.sampled_from(
    re.split(
        r"\s+",
        r"""copy commit begin end abort start transaction rollback work to prepare prepared 'a' and
        savepoint a release chain select 1 with as ( ) ; ; ; case when then end atomic create
        function f() returns int or replace rule on insert do t also $$ $$ table values explain
        analyze "commit" U&"copy" E'\';' from stdin stdout into begin atomic set local , return""",
    )
)
BODY_PIECES = [
    *("create table t (a int)", "select 1", "select 1 end", "return 1", "end", "commit"),
    *("select begin atomic", "select 1 case", "select case when a then 1 end", "select (1)"),
    *("copy t from stdin", "drop function f"),
]


@settings(max_examples=1500, deadline=None)
@given(
    st.one_of(
        st.lists(st.tuples(WORDS, SPACES), max_size=12),
        st.lists(st.tuples(st.sampled_from(PARSED), NOISE.map(lambda n: "\n;" + n)), max_size=3),
        st.lists(
            st.tuples(
                st.sampled_from(BODY_PIECES),
                st.sampled_from([";", ";", " ", "; ;", ";\n-- ;\n"]),
            ),
            max_size=7,
        ).map(lambda pieces: [("create function g() returns int begin atomic", " "), *pieces]),
    )
)
@example([("create function f() returns int begin atomic select 1 case; end; commit", "")])
@example([("create function f() returns int begin atomic select begin atomic; end; commit", "")])
@example([("create view v as select begin atomic; commit", "")])
def test_what_postgresql_parses_is_counted_and_refused_as_its_parser_says(
    pieces: list[tuple[str, str]],
) -> None:
    sql = "".join(word + gap for word, gap in pieces)
    try:
        parsed = postgast.parse(sql)
    except postgast.PgQueryError:
        return
    count = len(parsed.stmts)
    if count == 0:
        with pytest.raises(EmptyStatement, match=r"^SQL is empty$"):
            classify(sql)
    elif count > 1:
        with pytest.raises(SeveralStatements, match=r"^Multistatements aren't supported\.$"):
            classify(sql)
    elif holds_what_is_refused(parsed):
        with pytest.raises(StatementRefused):
            classify(sql)
    else:
        classify(sql)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARSED), min_size=1, max_size=3), NOISE)
def test_valid_statements_are_counted_as_postgresql_splits_them(
    statements: list[str], noise: str
) -> None:
    sql = noise + ("\n;" + noise).join(statements)
    if len(statements) > 1:
        with pytest.raises(SeveralStatements):
            classify(sql)
    elif statements[0] not in REFUSED:
        classify(sql)


@pytest.mark.parametrize("sql", ["", " ", ";", " ; ;\n", "-- select 1", "/* select 1 */;"])
def test_a_text_without_a_statement_is_refused(sql: str) -> None:
    with pytest.raises(EmptyStatement, match=r"^SQL is empty$"):
        classify(sql)


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("select 1; select 2", id="two reads"),
        pytest.param("select 1;; ;copy t from stdin", id="several semicolons"),
        pytest.param("select ';'; commit", id="a semicolon in a string"),
        pytest.param("select 1;/* ; */commit", id="a comment between"),
        pytest.param(
            "create function f() returns int begin atomic select 1; end; commit",
            id="behind the body of a function",
        ),
        pytest.param(
            "create function f() returns int begin atomic select begin atomic; end; commit",
            id="behind a body that seems to hold another",
        ),
        pytest.param(
            "create function f() returns int begin atomic select 1 case; end; commit",
            id="behind a body with a column called case",
        ),
        pytest.param("select begin atomic; commit", id="columns called begin and atomic"),
        pytest.param("create view v as select begin atomic; commit", id="the same in a view"),
        pytest.param("select 1); commit", id="a parenthesis too many"),
    ],
)
def test_two_statements_are_refused(sql: str) -> None:
    with pytest.raises(SeveralStatements, match=r"^Multistatements aren't supported\.$"):
        classify(sql)


@pytest.mark.parametrize(
    ("sql", "verb"),
    [
        ("/* x */ select 1", "SELECT"),
        ("(table t)", "TABLE"),
        ("; With a as (select 1) select 1", "WITH"),
        ("create table t ()", "CREATE"),
        pytest.param('"select" 1', "", id="a quoted word is no keyword"),
        pytest.param('U&"copy" t', "", id="a quoted word with escapes is no keyword"),
        pytest.param("1", "", id="a number is no keyword"),
        pytest.param("(", "", id="a parenthesis is no keyword"),
    ],
)
def test_the_verb_is_the_first_keyword(sql: str, verb: str) -> None:
    assert classify(sql).verb == verb


@pytest.mark.parametrize("sql", ["\u017felect 1", "\ufeffselect 1", "select\u00a01"])
def test_keywords_are_folded_as_postgresql_folds_them(sql: str) -> None:
    assert classify(sql).path is Path.WRITE


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        *((verb, True) for verb in ("SELECT", "VALUES", "TABLE", "WITH", "EXPLAIN")),
        *((verb, True) for verb in ("INSERT", "UPDATE", "DELETE", "MERGE")),
        *((verb, False) for verb in ("", "SHOW", "CREATE", "SET", "CALL", "DO", "VACUUM")),
    ],
)
def test_rows_are_read_or_changed_by(verb: str, expected: bool) -> None:
    assert is_dml(verb) is expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("select 1", "select 2", id="a number"),
        pytest.param("select 'a'", "select E'b\\''", id="a string"),
        pytest.param("select $1", "select :name", id="how a value is given"),
        pytest.param("select 1", "SELECT\n  $$x$$ -- y", id="case and layout"),
        pytest.param("select 1", ";select 1;;", id="semicolons around it"),
        pytest.param("a in (1, 2, 3)", "a in ($1)", id="the length of a list"),
        pytest.param("values (1,2),(3,4)", "values (5,6)", id="the number of rows"),
        pytest.param("a = -1", "a = 1", id="a sign"),
        pytest.param("f(-1, +2)", "f(1, 2)", id="signs in a list"),
    ],
)
def test_values_make_no_difference_to_a_fingerprint(one: str, other: str) -> None:
    assert fingerprint(one) == fingerprint(other) == fingerprint(other, tokens(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("select a", "select b", id="a column"),
        pytest.param('select "a"', 'select "A"', id="case between quotes"),
        pytest.param("select a - 1", "select a + 1", id="an operator"),
        pytest.param("select f(a, 1)", "select f(a)", id="an argument"),
    ],
)
def test_all_else_makes_a_difference_to_a_fingerprint(one: str, other: str) -> None:
    assert fingerprint(one) != fingerprint(other)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_a_fingerprint_shows_nothing_of_the_text(value: str) -> None:
    quoted = "'" + value.replace("'", "''") + "'"
    try:
        found = fingerprint(f"select {quoted}")
    except StatementRefused:
        return
    assert found == fingerprint("select 1")
    assert len(found) == 16 and set(found) <= set("0123456789abcdef")

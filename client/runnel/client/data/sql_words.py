"""What the SQL of a selection may consist of, in the words of sqlglot: the names of its classes and functions."""

from __future__ import annotations

_PARTS = """
    Select Union Intersect Except Subquery With CTE TableAlias Table From Join Where Group Having Order Ordered Limit
    Offset Fetch Distinct Qualify Window WindowSpec Values Tuple Lateral
    Column Identifier Alias Aliases Star Literal Null Boolean Paren Interval Var IntervalSpan
    Add Sub Mul Div IntDiv Mod Neg Pow BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitwiseLeftShift BitwiseRightShift
    And Or Xor Not EQ NEQ GT GTE LT LTE NullSafeEQ NullSafeNEQ Is In Between Like ILike SimilarTo RegexpLike
    RegexpILike Escape Exists Any All DPipe Collate
    Case If Cast TryCast DataType DataTypeParam Filter WithinGroup Anonymous AtTimeZone Cube Rollup GroupingSets
"""
PARTS = frozenset(_PARTS.split())
"""Classes of nodes."""

_FUNCTIONS = """
    count count_if countif sum avg min max median mode stddev stddev_pop stddev_samp variance var_pop var_samp
    variance_pop covar_pop covar_samp corr skewness kurtosis quantile quantile_cont quantile_disc percentile_cont
    percentile_disc approx_quantile approx_distinct approx_count_distinct bool_and bool_or logical_and logical_or every
    any_value first last arg_max arg_min max_by min_by array_agg list group_concat string_agg listagg regr_slope
    regr_intercept regr_r2 regr_count regr_avgx regr_avgy regr_sxx regr_sxy regr_syy bit_and bit_or bit_xor
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value nth_value
    abs ceil ceiling floor round trunc truncate sign sqrt cbrt exp ln log log2 log10 pow power mod greatest least pi
    sin cos tan cot asin acos atan atan2 sinh cosh tanh degrees radians div isnan is_nan isinf is_inf width_bucket
    coalesce nullif ifnull nvl iif if case cast try_cast safe_cast and or xor
    lower upper length len char_length character_length trim ltrim rtrim btrim substring substr left right replace
    concat concat_ws position strpos str_position instr charindex locate split_part starts_with startswith ends_with
    endswith contains reverse initcap ascii chr unicode translate md5 sha1 sha256 sha sha2 levenshtein
    regexp_like regexp_ilike regexp_matches regexp_full_match regexp_extract regexp_replace regexp_count similar_to
    date time datetime timestamp year month day hour minute second quarter week weekofyear week_of_year day_of_week
    day_of_month day_of_year dayofweek dayofmonth dayofyear date_part datepart extract date_trunc timestamp_trunc
    datetime_trunc date_diff datediff timestamp_diff datetime_diff date_add date_sub datetime_add datetime_sub
    timestamp_add timestamp_sub ts_or_ds_add ts_or_ds_to_date ts_or_ds_diff age make_date date_from_parts
    make_timestamp make_time last_day current_date current_time current_timestamp current_datetime localtime
    localtimestamp now today strftime strptime to_char time_to_str str_to_time str_to_date to_date to_timestamp
    time_str_to_time date_str_to_date ts_or_ds_to_timestamp unix_to_time time_to_unix to_number epoch julian julianday
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
"""Functions that compute from their arguments: none makes rows, or text that is longer than what it is given."""

_TYPES = """
    TINYINT SMALLINT MEDIUMINT INT BIGINT INT128 UTINYINT USMALLINT UINT UBIGINT UINT128 FLOAT DOUBLE DECIMAL BIGDECIMAL
    CHAR NCHAR VARCHAR NVARCHAR TEXT BOOLEAN DATE TIME TIMETZ TIMESTAMP TIMESTAMPTZ TIMESTAMPLTZ TIMESTAMPNTZ DATETIME
    INTERVAL UUID YEAR
"""
TYPES = frozenset(_TYPES.split())
"""Types that a value is cast to."""

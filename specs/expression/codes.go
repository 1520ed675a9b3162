package expression

import "github.com/sensor-engine/engine/specs"

// The codes of the diagnostics this package makes.
const (
	// CodeSyntax: the expression cannot be parsed.
	CodeSyntax specs.Code = "expr-syntax"
	// CodeUnknownName: a name, attribute or function that does not exist here.
	CodeUnknownName specs.Code = "expr-unknown-name"
	// CodeType: an operator or function is given a type it does not take.
	CodeType specs.Code = "expr-type"
	// CodeNotBoolean: a condition whose result can never be true or false.
	CodeNotBoolean specs.Code = "expr-not-boolean"
	// CodeNegatedDependency: `!name`; a bare name only ever means arrived.
	CodeNegatedDependency specs.Code = "expr-negated-dependency"
	// CodeAbsentDependency: the name of a dependency that is declared absent
	// where an event is meant, or absent() of one that is not.
	CodeAbsentDependency specs.Code = "expr-absent-dependency"
	// CodeUnusedDefault: a ?? whose left side is never nil.
	CodeUnusedDefault specs.Code = "expr-unused-default"
	// CodeNotDeterministic: something that would give another result when the
	// log is folded again, such as the clock.
	CodeNotDeterministic specs.Code = "expr-not-deterministic"
	// CodePattern: the pattern of `matches` is not a short string literal.
	CodePattern specs.Code = "expr-pattern"
	// CodeTooLarge: the source or its tree exceeds the limits.
	CodeTooLarge specs.Code = "expr-too-large"
	// CodeUnterminated: a `${` without its `}`.
	CodeUnterminated specs.Code = "template-unterminated"
)

package jq

import "github.com/sensor-engine/engine/specs"

// The codes of the diagnostics this package makes.
const (
	// CodeSyntax: the program cannot be parsed.
	CodeSyntax specs.Code = "jq-syntax"
	// CodeUnknownName: a function, variable or label that does not exist here.
	CodeUnknownName specs.Code = "jq-unknown-name"
	// CodeNotDeterministic: something that would give another result when the
	// log is folded again, such as the clock.
	CodeNotDeterministic specs.Code = "jq-not-deterministic"
	// CodeUnsupported: something of jq whose cost cannot be told before.
	CodeUnsupported specs.Code = "jq-unsupported"
	// CodeTooLarge: the source exceeds the limit.
	CodeTooLarge specs.Code = "jq-too-large"
)

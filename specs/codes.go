package specs

// The codes of this package's diagnostics. docs/diagnostics.md has a section
// for each, with an example and what to do.
const (
	// CodeUnreadable: a path is missing or cannot be read.
	CodeUnreadable Code = "unreadable"
	// CodeLinkOutside: a symbolic link leaves the directory that was asked for.
	CodeLinkOutside Code = "link-outside"
	// CodeTestFile: spec tests where specs are read, or the other way round.
	CodeTestFile Code = "test-file"
	// CodeFileTooLarge: a file exceeds the size limit.
	CodeFileTooLarge Code = "file-too-large"
	// CodeEncoding: a file is not UTF-8 text.
	CodeEncoding Code = "encoding"
	// CodeSyntax: a file is no YAML.
	CodeSyntax Code = "yaml-syntax"
	// CodeTooManyNodes: a file has too many values, aliases expanded.
	CodeTooManyNodes Code = "too-many-values"
	// CodeTooDeep: a file is nested too deeply.
	CodeTooDeep Code = "too-deep"
	// CodeAliasCycle: an alias refers to a value it is part of.
	CodeAliasCycle Code = "alias-cycle"
	// CodeInvalidMerge: a merge key has something else than mappings.
	CodeInvalidMerge Code = "invalid-merge"
	// CodeInvalidKey: a key is empty or no text.
	CodeInvalidKey Code = "invalid-key"
	// CodeDuplicateKey: a mapping has a key twice.
	CodeDuplicateKey Code = "duplicate-key"
	// CodeCustomTag: a value begins with "!", which YAML takes for a tag.
	CodeCustomTag Code = "custom-tag"
	// CodeTooManyProblems: a file has more problems than are shown.
	CodeTooManyProblems Code = "too-many-problems"

	// CodeNotResource: a document is not a resource at all.
	CodeNotResource Code = "not-a-resource"
	// CodeAPIVersion: apiVersion is missing or unknown.
	CodeAPIVersion Code = "api-version"
	// CodeUnknownKind: kind names no kind of resource.
	CodeUnknownKind Code = "unknown-kind"
	// CodeInvalidName: a name is not a DNS label.
	CodeInvalidName Code = "invalid-name"
	// CodeUnknownKey: a key that does not exist here.
	CodeUnknownKey Code = "unknown-key"
	// CodeMissingKey: a required key is missing or empty.
	CodeMissingKey Code = "missing-key"
	// CodeWrongType: a value of the wrong type.
	CodeWrongType Code = "wrong-type"
	// CodeUnknownValue: a value that is none of those allowed.
	CodeUnknownValue Code = "unknown-value"
	// CodeInvalidValue: a value that its field cannot take.
	CodeInvalidValue Code = "invalid-value"
	// CodeOutOfRange: a number, duration or size beyond its limits.
	CodeOutOfRange Code = "out-of-range"
	// CodeInvalidDuration: text that is no duration.
	CodeInvalidDuration Code = "invalid-duration"
	// CodeInvalidSize: text that is no size.
	CodeInvalidSize Code = "invalid-size"
	// CodeInvalidNumber: a number that cannot be represented.
	CodeInvalidNumber Code = "invalid-number"
	// CodeAmbiguous: a value that YAML versions read differently.
	CodeAmbiguous Code = "ambiguous-value"
	// CodeInvalidGlob: a pattern with characters that patterns do not have.
	CodeInvalidGlob Code = "invalid-glob"
	// CodeEmptyExpression: an expression was given but is empty.
	CodeEmptyExpression Code = "empty-expression"
	// CodeExpressionBraces: ${ } around something that is an expression anyway.
	CodeExpressionBraces Code = "expression-braces"
	// CodeUnterminated: a ${ without its }.
	CodeUnterminated Code = "unterminated-expression"

	// CodeUnknownSourceType: an EventSource uses a type that does not exist.
	CodeUnknownSourceType Code = "unknown-source-type"
	// CodeFunctionChoice: not exactly one function or function kind is given.
	CodeFunctionChoice Code = "function-choice"
	// CodeDuplicateName: a name is used twice in one document.
	CodeDuplicateName Code = "duplicate-name"
	// CodeReservedName: a name that expressions use for something else.
	CodeReservedName Code = "reserved-name"
	// CodeEmptyDependency: a dependency that selects nothing in particular.
	CodeEmptyDependency Code = "empty-dependency"
	// CodeWorkflowCycle: triggers that wait for each other.
	CodeWorkflowCycle Code = "workflow-cycle"
	// CodeSpreadOrder: jobs that are spread and have an order.
	CodeSpreadOrder Code = "spread-order"
	// CodeDuplicateResource: a resource is defined twice.
	CodeDuplicateResource Code = "duplicate-resource"
	// CodeUnknownReference: a Function, EventSource, Secret or trigger that does
	// not exist.
	CodeUnknownReference Code = "unknown-reference"
	// CodeUnknownEvent: an EventSource has no event of this name.
	CodeUnknownEvent Code = "unknown-event"
	// CodeUnknownSecretKey: a Secret has no such key.
	CodeUnknownSecretKey Code = "unknown-secret-key"
	// CodeInvalidReference: what is referenced has errors of its own.
	CodeInvalidReference Code = "invalid-reference"
)

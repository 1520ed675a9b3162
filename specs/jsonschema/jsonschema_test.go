package jsonschema

import (
	"errors"
	"strings"
	"testing"
)

func TestCompile(t *testing.T) {
	for schema, want := range map[string]string{
		`{}`:   "",
		`true`: "",
		`{"$schema":"http://json-schema.org/draft-04/schema#","properties":{"n":{"minimum":1,"exclusiveMinimum":true}}}`: "",
		`{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"a":{}},"$ref":"#/definitions/a"}`:          "",
		`{"properties":{"n":{"minimum":1,"exclusiveMinimum":true}}}`:                                                     "at /properties/n/exclusiveMinimum: got boolean, want number",
		`{"properties":{"name":{"type":"strin"}}}`:                                                                       "at /properties/name/type: ",
		`{"properties":{"name":{"pattern":"^(?!a)"}}}`:                                                                   `at /properties/name/pattern: ^(?!a) is not valid regex`,
		`{"$ref":"https://example.com/schema.json"}`:                                                                     "is not read, put it below $defs",
		`{"$ref":"#/$defs/none"}`:                                                                                        "none",
		`[]`:                                                                                                             "want",
		`{`:                                                                                                              "EOF",
	} {
		_, err := Parse([]byte(schema))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant %s", schema, err, want)
		}
	}
	var at *Error
	if _, err := Compile(map[string]any{"properties": map[string]any{"a": map[string]any{"maxLength": "x"}}}); !errors.As(err, &at) || strings.Join(at.Path, "/") != "properties/a/maxLength" {
		t.Errorf("%v", err)
	}
}

func TestValidate(t *testing.T) {
	s, err := Parse([]byte(`{"type":"object","properties":{"name":{"type":"string","pattern":"^[A-Za-z]+$"},"n":{"type":"integer"},"at":{"format":"date-time"}},"required":["name"],"additionalProperties":false}`))
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{
		`{"name":"Jon","n":12345678901234567890123}`: "",
		`{}`:                             "missing property name",
		``:                               "got null, want object",
		`{"name":"J0n"}`:                 "/name: J0n does not match pattern ^[A-Za-z]+$",
		`{"name":"Jon","n":1.5}`:         "/n: got number, want integer",
		`{"name":"Jon","x":1}`:           "additional properties x not allowed",
		`{"name":"Jon","at":"tomorrow"}`: "/at: tomorrow is not valid date-time",
		`{"name":`:                       "it is not JSON",
		`{"name":1,"n":"x"}`:             "/n: got string, want integer; /name: got number, want string",
	} {
		if got := Text(s.ValidateJSON([]byte(value))); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s\n got %s\nwant %s", value, got, want)
		}
	}
	if got := s.Validate(map[string]any{"name": "Jon", "a": 1, "b": 2}); len(got) != 1 || len(got[0].Unknown) != 2 {
		t.Errorf("%+v", got)
	}
	if got := Text(make([]Violation, 7)); !strings.HasSuffix(got, "; and 2 more") {
		t.Error(got)
	}
}

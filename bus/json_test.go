package bus

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// reference is ParseJSON written with encoding/json.
func reference(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return referenceNumbers(v)
}

func referenceNumbers(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case json.Number:
		if !strings.ContainsAny(string(v), ".eE") {
			if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
				return n, nil
			}
		}
		return strconv.ParseFloat(string(v), 64)
	case map[string]any:
		for k, e := range v {
			if v[k], err = referenceNumbers(e); err != nil {
				return nil, err
			}
		}
	case []any:
		for i, e := range v {
			if v[i], err = referenceNumbers(e); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

var jsonCases = []string{
	"", " ", "null", "true", "false", "tru", "truex", "nul", "0", "-0", "01", "-", "1.", "1.5", ".5", "1e5", "1E+5", "1e", "1e-", "-1.5e-3", "1e999", "-1e999",
	"9223372036854775807", "9223372036854775808", "-9223372036854775808", "9007199254740993", "123456789012345678901234567890", "1 2", "1x", "[1]x",
	`""`, `"a"`, `"`, `"\`, `"\n\t\"\\\/\b\f\r"`, `"\u00e4"`, `"\ud83d\ude00"`, `"\ud83d"`, `"\ud83dx"`, `"\ud83d\u0041"`, `"\ud83d\ud83d\ude00"`, `"\ude00"`, `"\u12"`, `"\u12g4"`, `"\x"`,
	"\"\xff\"", "\"a\\n\xff\xc3\"", "\"\xed\xa0\x80\"", "\"\u00e4\u2028\"", "\"a\nb\"", "\"\x00\"", "\"\\\x00\"", "\"\x7f\"",
	"[]", "[ ]", "[1]", "[1,]", "[,]", "[1 2]", "[1", "[", "]", `{}`, `{ }`, `{"a":1}`, `{"a":1,}`, `{"a"}`, `{"a":}`, `{a:1}`, `{"a":1 "b":2}`, `{"a":1,"a":2}`, `{"a":{"b":[1,{"c":null}]}}`, `{`, `{"a":1`, `}`,
	`{"b":{"a":[1,{"a":"x"}]},"a":{"b":1},"c":[[],{},"\u0041",1e5,-2.5],"":0}`, `{"c":1e999}`, `{"c":[1e-999]}`, `[{"a":1,"c":2}]`, `{"c":{"c":{}},"a":1,"a":2}`,
	" \n\t\r{ \"a\" : [ 1 , \"x\" ] } \n", "\v1", "\ufeff1", "[[[[[[]]]]]]", `{"":""}`,
}

func TestParseJSON(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, s := range append(jsonCases, deep(maxJSONDepth), deep(maxJSONDepth+1)) {
		want, wantErr := reference([]byte(s))
		got, err := ParseJSON([]byte(s))
		if (err == nil) != (wantErr == nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%.40q: got %#v, %v; want %#v, %v", s, got, err, want, wantErr)
		}
		checkFields(t, []byte(s), got, err)
	}
}

// checkFields checks ParseJSONFields against the whole value.
func checkFields(t *testing.T, data []byte, whole any, wholeErr error) {
	t.Helper()
	for _, fields := range [][]string{nil, {"a"}, {"b", "a", ""}} {
		got, err := ParseJSONFields(data, fields)
		if (err == nil) != (wholeErr == nil) {
			t.Errorf("%.40q: fields %q: %v; whole: %v", data, fields, err, wholeErr)
		}
		if err != nil {
			continue
		}
		want := whole
		if m, ok := whole.(map[string]any); ok {
			some := map[string]any{}
			for _, f := range fields {
				if v, ok := m[f]; ok {
					some[f] = v
				}
			}
			want = some
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%.40q: fields %q: got %#v, want %#v", data, fields, got, want)
		}
	}
}

func FuzzParseJSON(f *testing.F) {
	for _, s := range jsonCases {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		was := bytes.Clone(data)
		want, wantErr := reference(data)
		got, err := ParseJSON(data)
		if (err == nil) != (wantErr == nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("got %#v, %v; want %#v, %v", got, err, want, wantErr)
		}
		checkFields(t, data, got, err)
		if !bytes.Equal(data, was) {
			t.Error("the input was changed")
		}
	})
}

func BenchmarkParseJSON(b *testing.B) {
	data := []byte(`{"orderId":"ord-2026-000123456","customer":{"id":73219,"name":"Ada Lovelace","email":"ada@example.com","vip":true},` +
		`"items":[{"sku":"B-100","qty":2,"price":19.95},{"sku":"K-7","qty":1,"price":110.5}],"total":150.4,"currency":"EUR","note":"leave at the door",` +
		`"address":{"city":"London","zip":"N1 9GU","country":"GB"}}`)
	for _, bb := range []struct {
		name  string
		parse func([]byte) (any, error)
	}{
		{"own", ParseJSON},
		{"one-field", func(b []byte) (any, error) { return ParseJSONFields(b, []string{"total"}) }},
		{"encoding-json", reference},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if _, err := bb.parse(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

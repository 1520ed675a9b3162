package bus

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestValidJSON(t *testing.T) {
	cases := jsonCases
	for _, n := range []int{maxJSONDepth, maxJSONDepth + 1} {
		cases = append(cases, strings.Repeat("[", n)+strings.Repeat("]", n), strings.Repeat(`{"":`, n)+"1"+strings.Repeat("}", n))
	}
	// Each kind of byte at each place of a word, with what may hide it around.
	for c := range 256 {
		for at := range 17 {
			for _, pad := range []string{"x", "\x80", "\xff", "!", "#", "]", "[", " "} {
				s := strings.Repeat(pad, at) + string([]byte{byte(c)}) + strings.Repeat(pad, 17-at)
				cases = append(cases, s, `"`+s+`"`, `"`+s, `{"`+s+`":1}`)
			}
		}
	}
	for _, c := range []string{" ", "\t", "\r\n", "\v", "\x00"} {
		for n := range 20 {
			cases = append(cases, "["+strings.Repeat(c, n)+"1"+strings.Repeat(c, n)+"]", strings.Repeat(c, n), "[1]"+strings.Repeat(" ", n)+c)
		}
	}
	for _, s := range cases {
		if got, want := ValidJSON([]byte(s)), json.Valid([]byte(s)); got != want {
			t.Errorf("%.60q: %v, want %v", s, got, want)
		}
	}
}

func FuzzValidJSON(f *testing.F) {
	for _, s := range jsonCases {
		f.Add([]byte(s))
		f.Add([]byte("[ 12345678,\n        " + s + `, "0123456789abcdef\u00e4\n", -1.5e+3, true,null]`))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, want := ValidJSON(data), json.Valid(data); got != want {
			t.Errorf("%v, want %v", got, want)
		}
	})
}

func BenchmarkValidJSON(b *testing.B) {
	order := `{"orderId":"ord-2026-000123456","customer":{"id":73219,"name":"Ada Lovelace","vip":true},"items":[{"sku":"B-100","qty":2,"price":19.95}],"note":"leave at\nthe door"}`
	orders := "[" + strings.Repeat(order+",", 999) + order + "]"
	var v any
	if err := json.Unmarshal([]byte(orders), &v); err != nil {
		b.Fatal(err)
	}
	indented, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		b.Fatal(err)
	}
	var numbers strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&numbers, "%d,%d.%d,", i, i*7919, i)
	}
	for _, bb := range []struct {
		name string
		data []byte
	}{
		{"order", []byte(order)},
		{"orders", []byte(orders)},
		{"indented", indented},
		{"numbers", []byte("[" + numbers.String() + "0]")},
		{"text", []byte(`{"text":"` + strings.Repeat("To be, or not to be. ", 50_000) + `"}`)},
	} {
		for name, valid := range map[string]func([]byte) bool{"own": ValidJSON, "encoding-json": json.Valid} {
			b.Run(bb.name+"/"+name, func(b *testing.B) {
				b.SetBytes(int64(len(bb.data)))
				for b.Loop() {
					if !valid(bb.data) {
						b.Fatal("not valid")
					}
				}
			})
		}
	}
}

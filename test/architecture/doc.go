// Package architecture holds the tests of the house rules that the compiler
// does not know: which package may import which, where YAML is parsed, that
// nothing registers itself, that sensors are pure, and that every package says
// what it is. It looks at the source only and must not import what it checks.
package architecture

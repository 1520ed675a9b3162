// Package docs owns the pages of this directory; it has no code but the tests
// that keep them true: reference tables are made from the configs of sources
// and functions, specs shown are checked, links and named tests must exist.
package docs

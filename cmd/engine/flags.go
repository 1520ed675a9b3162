package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sensor-engine/engine/specs"
)

// durationFlag is a duration as specs write it: 500ms, 10s, 7d.
type durationFlag specs.Duration

// String is the shortest form: 7d, 5m.
func (d *durationFlag) String() string {
	const day = 24 * time.Hour
	t := time.Duration(*d)
	if t >= day && t%day == 0 {
		return fmt.Sprintf("%dd", t/day)
	}
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
func (d *durationFlag) Type() string { return "duration" }
func (d *durationFlag) Set(s string) error {
	v, err := specs.ParseDuration(s)
	*d = durationFlag(v)
	return err
}

// sizeFlag is a size as specs write it: 512, 64KiB, 10GiB.
type sizeFlag specs.Size

func (z *sizeFlag) String() string { return specs.Size(*z).String() }
func (z *sizeFlag) Type() string   { return "size" }
func (z *sizeFlag) Set(s string) error {
	v, err := specs.ParseSize(s)
	*z = sizeFlag(v)
	return err
}

// choiceFlag is one of a few words.
type choiceFlag struct {
	value   *string
	choices []string
}

func (c *choiceFlag) String() string {
	if c.value == nil {
		return ""
	}
	return *c.value
}
func (c *choiceFlag) Type() string { return strings.Join(c.choices, "|") }
func (c *choiceFlag) Set(s string) error {
	if !slices.Contains(c.choices, s) {
		return fmt.Errorf("%q is none of %s", s, strings.Join(c.choices, ", "))
	}
	*c.value = s
	return nil
}

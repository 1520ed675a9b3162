package calendar

import (
	"strings"
	"testing"
	"time"
)

// TestClockChanges is the table of docs/calendar.md, in both hemispheres.
func TestClockChanges(t *testing.T) {
	for _, tt := range []struct {
		name, zone, day string
		c               Config
		want            string // all occurrences of that day and the hours around
	}{
		// Amsterdam: 2026-03-29 02:00 → 03:00, 2026-10-25 03:00 → 02:00.
		{"certain hour, forward", "Europe/Amsterdam", "2026-03-29", Config{Schedule: "30 2 * * *"}, "03:30+02"},
		{"certain hour, back", "Europe/Amsterdam", "2026-10-25", Config{Schedule: "30 2 * * *"}, "02:30+02"},
		{"certain hours, forward", "Europe/Amsterdam", "2026-03-29", Config{Schedule: "30 1-3 * * *"}, "01:30+01 03:30+02"},
		{"every second hour, forward", "Europe/Amsterdam", "2026-03-29", Config{Schedule: "0 */2 * * *", End: "2026-03-29T07:00"}, "00:00+01 03:00+02 04:00+02 06:00+02"},
		{"every second hour, back", "Europe/Amsterdam", "2026-10-25", Config{Schedule: "0 */2 * * *", End: "2026-10-25T05:00"}, "00:00+02 02:00+02 04:00+01"},
		{"every hour, forward", "Europe/Amsterdam", "2026-03-29", Config{Schedule: "30 * * * *", End: "2026-03-29T05:00"}, "00:30+01 01:30+01 03:30+02 04:30+02"},
		{"every hour, back", "Europe/Amsterdam", "2026-10-25", Config{Schedule: "30 * * * *", End: "2026-10-25T04:00"}, "00:30+02 01:30+02 02:30+02 02:30+01 03:30+01"},
		{"rule, forward", "Europe/Amsterdam", "2026-03-29", Config{RRule: "FREQ=DAILY;BYHOUR=2;BYMINUTE=30"}, "03:30+02"},
		{"rule, back", "Europe/Amsterdam", "2026-10-25", Config{RRule: "FREQ=DAILY;BYHOUR=2;BYMINUTE=30"}, "02:30+02"},
		{"hourly rule, forward", "Europe/Amsterdam", "2026-03-29", Config{RRule: "FREQ=HOURLY;INTERVAL=2", Start: "2026-03-29T00:00", End: "2026-03-29T08:00"}, "00:00+01 03:00+02 05:00+02 07:00+02"},
		{"hourly rule, back", "Europe/Amsterdam", "2026-10-25", Config{RRule: "FREQ=HOURLY", Start: "2026-10-25T00:30", End: "2026-10-25T04:00"}, "00:30+02 01:30+02 02:30+02 02:30+01 03:30+01"},
		{"interval, back", "Europe/Amsterdam", "2026-10-25", Config{Schedule: "@every 90m", Start: "2026-10-25T00:30", End: "2026-10-25T05:00"}, "00:30+02 02:00+02 02:30+01 04:00+01"},
		{"date that does not exist in rdate", "Europe/Amsterdam", "2026-03-29", Config{RDate: []string{"2026-03-29T02:15"}}, "03:15+02"},
		// Sydney: 2026-10-04 02:00 → 03:00, 2026-04-05 03:00 → 02:00.
		{"south, certain hour, forward", "Australia/Sydney", "2026-10-04", Config{Schedule: "30 2 * * *"}, "03:30+11"},
		{"south, certain hour, back", "Australia/Sydney", "2026-04-05", Config{Schedule: "30 2 * * *"}, "02:30+11"},
		{"south, every hour, back", "Australia/Sydney", "2026-04-05", Config{Schedule: "0 * * * *", End: "2026-04-05T04:00"}, "00:00+11 01:00+11 02:00+11 02:00+10 03:00+10 04:00+10"},
		// Lord Howe moves by half an hour: 2026-10-04 02:00 → 02:30.
		{"half an hour, forward", "Australia/Lord_Howe", "2026-10-04", Config{Schedule: "15,45 2 * * *"}, "02:45+11"},
		// Santiago: 2026-09-06 00:00 → 01:00, 2026-04-05 00:00 → 23:00 of the day before.
		{"midnight that does not exist", "America/Santiago", "2026-09-06", Config{Schedule: "@daily"}, "01:00-03"},
		{"hour before midnight twice", "America/Santiago", "2026-04-04", Config{Schedule: "30 23 * * *"}, "23:30-03"},
		{"hour before midnight twice, every hour", "America/Santiago", "2026-04-04", Config{Schedule: "30 * * * *", Start: "2026-04-04T22:00"}, "22:30-03 23:30-03 23:30-04"},
		// Samoa had no 30 December 2011.
		{"day that does not exist", "Pacific/Apia", "2011-12-31", Config{Schedule: "0 9 * * *"}, "09:00+14"},
		{"excluded day with an hour twice", "America/Santiago", "2026-04-04", Config{Schedule: "30 * * * *", Exclude: []string{"2026-04-04"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.c.Timezone = tt.zone
			s := newTest(t, &tt.c).schedule
			day, err := time.ParseInLocation(time.DateOnly, tt.day, s.Zone)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for n, ok := s.Next(day.Unix() - 7200); ok; n, ok = s.Next(n) {
				x := s.Time(n)
				if x.After(day.AddDate(0, 0, 2)) {
					break
				}
				if x.Format(time.DateOnly) == tt.day {
					got = append(got, x.Format("15:04Z07"))
				}
			}
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("got  %s\nwant %s", g, tt.want)
			}
		})
	}
}

// TestRules shows what configs mean.
func TestRules(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name string
		c    Config
		want string // the first three after the beginning of 2026
	}{
		{"either day", Config{Schedule: "0 0 13 * FRI"}, "01-02T00:00 01-09T00:00 01-13T00:00"},
		{"six fields", Config{Schedule: "30 0 12 1 * *"}, "01-01T12:00 02-01T12:00 03-01T12:00"},
		{"leap day", Config{Schedule: "0 0 29 2 *", Exclude: []string{"2028-02-29"}, End: "2036-12-31"}, "02-29T00:00 02-29T00:00"},
		{"zone in the schedule", Config{Schedule: "CRON_TZ=Asia/Tokyo 0 9 * * *"}, "01-02T09:00 01-03T09:00 01-04T09:00"},
		{"count with start", Config{RRule: "FREQ=DAILY;COUNT=2", Start: "2026-02-03T04:05"}, "02-03T04:05 02-04T04:05"},
		{"until a date", Config{RRule: "FREQ=DAILY;UNTIL=20260102;BYHOUR=9"}, "01-01T09:00 01-02T09:00"},
		{"exported", Config{RRule: "DTSTART;TZID=America/New_York:20260105T090000\nRRULE:FREQ=WEEKLY;COUNT=3\nEXDATE;TZID=America/New_York:20260112T090000\nRDATE;TZID=America/New_York:20260110T120000"}, "01-05T09:00 01-10T12:00 01-19T09:00"},
		{"last working day", Config{RRule: "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1"}, "01-30T00:00 02-27T00:00 03-31T00:00"},
		{"mixed days", Config{RRule: "FREQ=MONTHLY;BYDAY=1MO,FR"}, "01-02T00:00 01-05T00:00 01-09T00:00"},
		{"last week", Config{RRule: "FREQ=YEARLY;BYWEEKNO=-1;BYDAY=SU"}, "01-03T00:00 01-02T00:00 12-31T00:00"},
		{"fourteen days", Config{RRule: "FREQ=WEEKLY;INTERVAL=2;BYDAY=TU,SU;WKST=SU", Start: "2026-01-06"}, "01-06T00:00 01-18T00:00 01-20T00:00"},
		{"interval from start", Config{Interval: 5 * 3600e9, Start: "2026-01-01T01:00"}, "01-01T01:00 01-01T06:00 01-01T11:00"},
		{"only dates", Config{RDate: []string{"2026-05-01", "20260401T120000Z", "2026-05-01"}}, "04-01T12:00 05-01T00:00"},
		{"excluded instant", Config{Schedule: "0 12 * * *", ExDate: []string{"20260102T120000Z"}}, "01-01T12:00 01-03T12:00 01-04T12:00"},
		{"end", Config{Schedule: "0 12 * * *", End: "2026-01-02"}, "01-01T12:00 01-02T12:00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTest(t, &tt.c).schedule
			var got []string
			at := begin.Unix()
			for range 3 {
				n, ok := s.Next(at)
				if !ok {
					break
				}
				got = append(got, s.Time(n).Format("01-02T15:04"))
				at = n
			}
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("got  %s\nwant %s", g, tt.want)
			}
		})
	}
}

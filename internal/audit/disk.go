package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/clock"
)

// A disk is the writing end of the directory. Every write follows one pattern:
// ready (the file is what it was left as, or is repaired), append (into
// memory), flush (onto the disk; only then end moves).
type disk struct {
	dir  string
	lock *os.File // the directory itself, locked
	file *os.File // the newest segment; nil: to be opened
	log  string   // the log's own name
	end  position // what is durable
	next position // what will be, once buf is written
	buf  bytes.Buffer
	news []Event // about the log itself: written first, and kept until they are

	sync func(*os.File) error // makes the file durable: datasync

	aside  bool // what lies beyond end.off was not written by this process
	dirty  bool // the last write failed: what lies beyond end.off is its rest
	spoilt bool // somebody else had a hand in the segment: the log goes on in a new one
}

// A position is a place in the log.
type position struct {
	seq      uint64
	hash     string
	number   int    // of the segment; 0: there is none
	off      int64  // of the next line within it
	day      string // on which the segment was begun
	anchored uint64 // events that are no anchors, since the last anchor
}

const (
	format    = "1"
	appID     = "credential-broker audit log" // what the machine's id is hashed with
	machineID = "/etc/machine-id"
)

func (d *disk) hasNews() bool { return len(d.news) > 0 || d.aside }

func segmentName(number int) string { return fmt.Sprintf("%08d.jsonl", number) }

// open locks the directory and finds the end of the log.
func (d *disk) open() error {
	if err := d.acquire(); err != nil {
		return err
	}
	numbers, err := segments(d.dir)
	if err == nil {
		err = d.findEnd(numbers)
	}
	if err != nil {
		d.close()
		return fmt.Errorf("audit log: %w", err)
	}
	if d.log == "" {
		d.log = rand.Text()
	}
	return nil
}

// findEnd looks for the last entry that is whole, from the newest segment
// backwards.
func (d *disk) findEnd(numbers []int) error {
	for i := len(numbers) - 1; i >= 0; i-- {
		path := filepath.Join(d.dir, segmentName(numbers[i]))
		end, size, err := lastEntry(path)
		if err != nil {
			return err
		}
		if i == len(numbers)-1 {
			d.end.number, d.end.off, d.aside = numbers[i], end.off, size > end.off
		}
		if head, err := firstEntry(path); err == nil && head.Type == LogSegment {
			if head.Detail["format"] != format {
				return fmt.Errorf("%s was written in format %q by a newer version: start that version again, or move the directory away", path, head.Detail["format"])
			}
			d.log = head.Detail["log"]
			if i == len(numbers)-1 {
				d.end.day = head.Time.Format(time.DateOnly)
			}
		}
		if end.seq != 0 {
			d.end.seq, d.end.hash = end.seq, end.hash
			return nil
		}
	}
	return nil
}

// acquire makes the directory if need be, and sees to it that the lock is on
// the directory that is there now.
func (d *disk) acquire() error {
	if d.lock != nil {
		if same(d.lock, d.dir) {
			return nil
		}
		d.lock.Close()
		d.lock = nil
	}
	if err := os.Mkdir(d.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("audit log: make its directory: %w", err)
	}
	f, err := os.OpenFile(d.dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	var st unix.Stat_t
	err = unix.Fstat(int(f.Fd()), &st)
	switch {
	case err != nil:
	case st.Mode&0o022 != 0:
		err = fmt.Errorf("audit log: others may write to %s (mode %04o), and so could change the record: chmod go-w it", d.dir, st.Mode&0o7777)
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		err = fmt.Errorf("audit log: %s belongs to uid %d, and this process is uid %d: chown it", d.dir, st.Uid, os.Geteuid())
	default:
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		for n := 0; n < 5 && errors.Is(err, unix.EWOULDBLOCK); n++ { // it may be Written that looks
			time.Sleep(20 * time.Millisecond)
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("audit log: another daemon writes to %s: stop it, or give this one a state directory of its own", d.dir)
		}
	}
	if err != nil {
		f.Close()
		return err
	}
	d.lock = f
	return nil
}

// Written says whether a process has the log in dir open to write to it.
func Written(dir string) bool {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

func (d *disk) close() {
	for _, f := range []*os.File{d.file, d.lock} {
		if f != nil {
			f.Close()
		}
	}
	d.file, d.lock = nil, nil
}

// same says whether path still leads to f.
func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// ready leaves d with an open segment that ends where the log ends, and with
// buf begun: a new segment's first line, and the news.
func (d *disk) ready(now clock.Reading, limit int64) error {
	if err := d.check(); err != nil {
		return err
	}
	day := now.Wall.Format(time.DateOnly)
	if d.end.number == 0 || d.spoilt || d.end.off >= limit || d.end.off > 0 && d.end.day != day {
		if err := d.create(); err != nil {
			return err
		}
	}
	d.buf.Reset()
	d.next = d.end
	if d.end.off == 0 {
		d.next.day = day
		detail := map[string]string{"format": format, "log": d.log}
		if h := host(); h != "" {
			detail["host"] = h
		}
		if err := d.append(Event{Type: LogSegment, Detail: detail}, now); err != nil {
			return err
		}
	}
	for _, e := range d.news {
		if err := d.append(e, now); err != nil {
			return err
		}
	}
	return nil
}

// check opens the segment if need be, and cuts off what is no part of the log.
// A segment that is gone, or not as it was left, is left alone: the log goes
// on in a new one, and says so.
func (d *disk) check() error {
	if d.end.number == 0 || d.spoilt {
		return nil
	}
	path := filepath.Join(d.dir, segmentName(d.end.number))
	if d.dirty && d.file != nil {
		d.file.Close()
		d.file = nil
	}
	if d.file == nil {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
		if errors.Is(err, os.ErrNotExist) {
			return d.abandon("segment_removed")
		}
		if err != nil {
			return err
		}
		d.file = f
	}
	st, err := d.file.Stat()
	switch {
	case err != nil:
		return err
	case !same(d.file, path):
		return d.abandon("segment_removed")
	case st.Size() < d.end.off:
		return d.abandon("segment_cut")
	case st.Size() == d.end.off:
		d.aside, d.dirty = false, false
		return nil
	case d.aside:
		if err := d.setAside(st.Size()); err != nil {
			return err
		}
	case !d.dirty:
		return d.abandon("segment_appended")
	}
	if err := d.file.Truncate(d.end.off); err != nil {
		return err
	}
	d.aside, d.dirty = false, false
	return nil
}

// abandon gives up the segment: somebody else had a hand in it.
func (d *disk) abandon(code string) error {
	if d.file != nil {
		d.file.Close()
		d.file = nil
	}
	d.news = append(d.news, Event{Type: LogBroken, Code: code, Detail: map[string]string{
		"file": segmentName(d.end.number), "size": strconv.FormatInt(d.end.off, 10)}})
	d.aside, d.dirty, d.spoilt = false, false, true
	return nil
}

// setAside copies the unreadable end of the segment, up to size, to a file
// beside it.
func (d *disk) setAside(size int64) error {
	name := fmt.Sprintf("%08d.torn-%d", d.end.number, d.end.off)
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, sum), io.NewSectionReader(d.file, d.end.off, size-d.end.off)); err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), d.lock.Sync()); err != nil {
		return err
	}
	d.news = append(d.news, Event{Type: LogTorn, Detail: map[string]string{
		"file": segmentName(d.end.number), "offset": strconv.FormatInt(d.end.off, 10), "bytes": strconv.FormatInt(size-d.end.off, 10),
		"sha256": hex.EncodeToString(sum.Sum(nil)), "saved_as": name}})
	return nil
}

// create begins the next segment. Its first line is written with the batch
// that it is for.
func (d *disk) create() error {
	if err := d.acquire(); err != nil {
		return err
	}
	numbers, err := segments(d.dir)
	if err != nil {
		return err
	}
	number := d.end.number
	if len(numbers) > 0 {
		number = max(number, numbers[len(numbers)-1])
	}
	number++
	f, err := os.OpenFile(filepath.Join(d.dir, segmentName(number)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if d.file != nil {
		d.file.Close()
	}
	d.file, d.spoilt, d.end.number, d.end.off = f, false, number, 0
	return d.lock.Sync()
}

// append adds an entry to buf.
func (d *disk) append(e Event, at clock.Reading) error {
	entry := Entry{Seq: d.next.seq + 1, Time: date(at.Wall), Boot: at.Boot.Milliseconds(), Event: e, Prev: d.next.hash}
	hash, err := appendLine(&d.buf, &entry)
	if err != nil {
		return err
	}
	d.next.seq, d.next.hash = entry.Seq, hash
	switch e.Type {
	case LogAnchor:
		if e.Code == "" {
			d.next.anchored = 0
		}
	case LogSegment:
	default:
		d.next.anchored++
	}
	return nil
}

// flush makes buf durable.
func (d *disk) flush() error {
	_, err := d.file.WriteAt(d.buf.Bytes(), d.end.off)
	if err == nil {
		err = d.sync(d.file)
	}
	if err != nil {
		d.dirty = true
		return err
	}
	d.next.off = d.end.off + int64(d.buf.Len())
	d.end, d.news = d.next, nil
	if d.buf.Cap() > 1<<20 {
		d.buf = bytes.Buffer{} // a burst's memory is given back
	}
	return nil
}

// datasync writes the file's bytes and its length, not its times.
func datasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fdatasync "+f.Name(), err)
		}
	}
}

// host names the machine without giving its id away, as systemd's
// machine-id(5) asks for.
func host() string {
	id, err := os.ReadFile(machineID)
	if err != nil {
		return ""
	}
	m := hmac.New(sha256.New, bytes.TrimSpace(id))
	_, _ = io.WriteString(m, appID)
	return hex.EncodeToString(m.Sum(nil)[:16])
}

// explain says what to do about a write that failed.
func explain(err error) error {
	hint := "look at the disk and the kernel's log"
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		hint = "free some space there"
	case errors.Is(err, os.ErrNotExist):
		hint = "restore the directory above it"
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.EROFS):
		hint = "check its owner, its mode and how it is mounted"
	}
	return fmt.Errorf("the audit log cannot be written: %w: %s; no restart is needed", err, hint)
}

// errnoName is the kernel's word for what went wrong, as ENOSPC.
func errnoName(err error) string {
	var no unix.Errno
	if errors.As(err, &no) {
		if name := unix.ErrnoName(no); name != "" {
			return name
		}
	}
	return "other"
}

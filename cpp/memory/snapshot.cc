#include "memory/snapshot.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "memory/crc32c.h"

namespace mosaic {

namespace {

struct Opening {
  char magic[8];
  uint32_t format;
  uint32_t crc;
};
constexpr char kMagic[8] = {'m', 'o', 's', 'a', 'i', 'c', '\r', '\n'};  // text mode anywhere on the way would show
constexpr char kEnd[5] = "END.";

uint32_t number_of(const char* tag) {
  uint32_t number = 0;
  std::memcpy(&number, tag, sizeof number);
  return number;
}

}  // namespace

std::string printable(std::string text) {
  for (char& c : text)
    if (c < 0x20 || c > 0x7e) c = '?';
  return text;
}

uint32_t Snapshot::checksum(const Header& header, const std::byte* payload) {
  return crc32c(payload, header.bytes, crc32c(&header, offsetof(Header, crc)));
}

std::string Snapshot::name_of(uint32_t tag) {
  char text[sizeof tag];
  std::memcpy(text, &tag, sizeof tag);
  return printable({text, sizeof tag});
}

void Snapshot::refuse(const std::string& why) const {
  throw InvalidInput("snapshot: section " + name_of(tag_) + ": " + why + ". The file is damaged, or none of ours.");
}

void Snapshot::section(const char (&tag)[5]) { begin_section(number_of(tag)); }

void Snapshot::bytes(void* data, size_t n) {
  auto* there = static_cast<std::byte*>(data);
  while (n > 0) {
    if (at_ == end_) next_part();
    const size_t step = std::min(n, end_ - at_);
    std::byte* const here = payload() + at_;
    is_reading_ ? std::memcpy(there, here, step) : std::memcpy(here, there, step);
    there += step;
    at_ += step;
    n -= step;
  }
}

void Snapshot::kernel_bytes(Ops& ops, std::byte* data, size_t n) {
  while (n > 0) {
    if (at_ == end_) next_part();
    const size_t step = std::min(n, end_ - at_);
    std::byte* const here = payload() + at_;
    is_reading_ ? ops.copy(data, here, step) : ops.copy(here, data, step);
    ops.wait();
    data += step;
    at_ += step;
    n -= step;
  }
}

SnapshotWriter::SnapshotWriter(int fd) : Snapshot(false), fd_(fd) {
  Opening opening{};
  std::memcpy(opening.magic, kMagic, sizeof kMagic);
  opening.format = kFormat;
  opening.crc = crc32c(&opening, offsetof(Opening, crc));
  write_all(&opening, sizeof opening);
}

void SnapshotWriter::write_all(const void* data, size_t n) const {
  const char* from = static_cast<const char*>(data);
  while (n > 0) {
    const ssize_t written = write(fd_, from, n);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0)
      throw SpillError(std::string("snapshot: it cannot be written (") + std::strerror(written < 0 ? errno : ENOSPC) +
                       "). Free space there, or save elsewhere.");
    from += written;
    n -= static_cast<size_t>(written);
  }
}

void SnapshotWriter::next_part() {
  if (end_ > 0) {  // there is a part in hand
    const Header header{tag_, number_++, static_cast<uint32_t>(at_), 0};
    Header* const to = reinterpret_cast<Header*>(part_.data());
    *to = header;
    to->crc = checksum(header, payload());
    write_all(part_.data(), kHeaderBytes + at_);
  }
  at_ = 0;
  end_ = kPartBytes;
}

// A section has one part at least, so that the reader finds its tag.
void SnapshotWriter::begin_section(uint32_t tag) {
  next_part();
  tag_ = tag;
}

void SnapshotWriter::finish() {
  begin_section(number_of(kEnd));
  next_part();
  end_ = 0;
}

SnapshotReader::SnapshotReader(int fd) : Snapshot(true), fd_(fd) {
  tag_ = number_of("HEAD");
  Opening opening{};
  const size_t n = read_some(&opening, sizeof opening);
  if (n < sizeof opening || std::memcmp(opening.magic, kMagic, sizeof kMagic) != 0)
    throw InvalidInput("snapshot: the file is no saved session.");
  if (opening.crc != crc32c(&opening, offsetof(Opening, crc))) refuse("the first bytes do not match their checksum");
  if (opening.format != kFormat)
    throw InvalidInput("snapshot: the file has format " + std::to_string(opening.format) +
                       "; this version reads format " + std::to_string(kFormat) +
                       ". Restore it with the version that saved it.");
}

size_t SnapshotReader::read_some(void* data, size_t n) const {
  char* const to = static_cast<char*>(data);
  size_t have = 0;
  while (have < n) {
    const ssize_t step = read(fd_, to + have, n - have);
    if (step < 0 && errno == EINTR) continue;
    if (step < 0) throw SpillError(std::string("snapshot: it cannot be read (") + std::strerror(errno) + ").");
    if (step == 0) break;
    have += static_cast<size_t>(step);
  }
  return have;
}

void SnapshotReader::load(uint32_t tag) {
  Header header{};
  if (read_some(&header, sizeof header) < sizeof header) refuse("the file ends here, in the middle");
  if (header.bytes > kPartBytes) refuse("a part of " + std::to_string(header.bytes) + " bytes is none");
  if (read_some(payload(), header.bytes) < header.bytes) refuse("the file ends here, in the middle");
  if (header.crc != checksum(header, payload())) refuse("a part does not match its checksum");
  if (header.number != number_) refuse("part " + std::to_string(number_) + " is missing, or is not at its place");
  if (header.tag != tag) refuse("expected more of section " + name_of(tag) + ", found section " + name_of(header.tag));
  ++number_;
  at_ = 0;
  end_ = header.bytes;
}

void SnapshotReader::next_part() {
  do load(tag_);
  while (end_ == 0);
}

void SnapshotReader::begin_section(uint32_t tag) {
  if (at_ != end_) refuse("it is longer than it should be");
  load(tag);
  tag_ = tag;
}

void SnapshotReader::finish() {
  begin_section(number_of(kEnd));
  if (end_ != 0) refuse("it is longer than it should be");
  char beyond = 0;
  if (read_some(&beyond, 1) != 0) refuse("something stands behind the end of the file");
}

}  // namespace mosaic

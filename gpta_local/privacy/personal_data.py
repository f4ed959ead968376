"""Whether a text holds data of a person: an e-mail address, a telephone number, an account, an id.

Knows forms and check digits (python-stdnum, phonenumbers), nothing of the data at hand. Names and
addresses have no form and are not found. Numbers that a description may well hold are let pass:
dates, times, amounts, shares, counts, and any number of fewer than nine digits without a word such
as "MRN" before it.
"""

from __future__ import annotations

import importlib
import re
import unicodedata

LONG = 9
"""Digits from which on a number without a separator is one of a person or an account, not a count."""
FEW = 5
"""Digits without which no number is one of a person."""

_EMAIL = re.compile(r"[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,}")
_LONG_NUMBER = re.compile(rf"\d{{{LONG},}}")
_RECORD = re.compile(
    r"(?i)(?<!\w)(?:MRN|PID|SSN|"  # abbreviations that are enough, and words for "number" after another word
    r"(?:[\w-]{0,30}(?:patient|record|case|file|policy|account|customer|client|member|insurance|claim|passport|licen[cs]e)"
    r"[\w-]{0,30}\s+(?:number|num|no|nr|id)|\w{3,30}(?:nummer|-nr|-no|-id)|num[ée]ro|n°|№))"
    r"\W{0,3}[A-Z]{0,4}[-/]?\d[\d./-]{4,}"
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}", re.IGNORECASE)
_CARD = re.compile(r"(?<!\d)\d{4}([ -])(?:\d{4}\1\d{4}\1\d{1,7}|\d{6}\1\d{4,5})(?!\d)")
_COUNT = re.compile(
    r"(?<!\d)(?:\d{4}([./-])\d{1,2}\1\d{1,2}|\d{1,2}([./-])\d{1,2}\2(?:\d{4}|\d{2}))(?!\d|-\d{3})"  # a date
    r"(?:[T ]\d{1,2}(?::\d{2})+)?"  # with a time
    r"|(?<!\d)(?:19|20)\d{2}(?:[ /-](?:19|20)\d{2})+(?!\d)"  # years
    r"|(?<![\d.,+-])\d*[.,]\d+(?![\d.,-])"  # a decimal fraction
    r"|(?<!\d)\d{1,3}([ .,'])000(?:\3\d{3})*(?!\d)"  # thousands
)

_IDS = {  # a module of stdnum → the form in which its numbers are written; unbroken ones are long numbers
    "us.ssn": r"\d{3}-\d{2}-\d{4}",
    "gb.nhs": r"\d{3}[ -]\d{3}[ -]\d{4}",
    "fr.nir": r"[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}",
    "de.idnr": r"\d{2} \d{3} \d{3} \d{3}",
    "es.dni": r"\d{8}-?[A-Z]",
    "es.nie": r"[XYZ]-?\d{7}-?[A-Z]",
    "it.codicefiscale": r"[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z]",
    "ie.pps": r"\d{7}[A-W][A-IW]?",
    "se.personnummer": r"(?:\d{2})?\d{6}[-+]\d{4}",
    "fi.hetu": r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]",
    "dk.cpr": r"\d{6}-\d{4}",
    "be.nn": r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}",
    "ch.ssn": r"756\.\d{4}\.\d{4}\.\d{2}",
    "cz.rc": r"\d{6}/\d{3,4}",
    "ca.sin": r"\d{3}[ -]\d{3}[ -]\d{3}",
    "au.tfn": r"\d{3} \d{3} \d{3}",
    "br.cpf": r"\d{3}\.\d{3}\.\d{3}-\d{2}",
    "mx.curp": r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d",
    "in_.aadhaar": r"\d{4} \d{4} \d{4}",
    "in_.pan": r"[A-Z]{3}[PCHFATBLJG][A-Z]\d{4}[A-Z]",
    "kr.rrn": r"\d{6}-\d{7}",
}
_REGIONS = ("US", "GB", "DE", "FR", "IT", "ES", "NL", "BE", "CH", "AT", "SE", "DK", "PL", "IN", "BR", "AU", "JP")
"""Countries whose telephone numbers are known without the country's prefix; with it, all are."""


def find(text: str) -> str:
    """The kind of personal data in a text, in words for the user; "" for none."""
    text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    if _EMAIL.search(text):
        return "an e-mail address"
    text = _COUNT.sub("|", text)
    if len(re.findall(r"\d", text)) < FEW:
        return ""
    if any(map(_is_iban, _IBAN.findall(text))):
        return "a bank account number (IBAN)"
    if any(_is_valid("luhn", re.sub("[ -]", "", match[0])) for match in _CARD.finditer(text)):
        return "a payment card number"
    for module, form in _IDS.items():
        if any(_is_valid(module, found) for found in re.findall(rf"(?<![\w.-]){form}(?!\w|[.-]\d)", text)):
            return "a national identity number"
    if _RECORD.search(text):
        return "a record number"
    if _LONG_NUMBER.search(text):
        return f"a number of {LONG} or more digits"
    return "a telephone number" if _has_phone(text) else ""


def _is_iban(found: str) -> bool:
    """What is found may go on into the next words."""
    compact = found.replace(" ", "")
    return any(_is_valid("iban", compact[:length]) for length in range(15, len(compact) + 1))


def _is_valid(module: str, number: str) -> bool:
    return bool(importlib.import_module(f"stdnum.{module}").is_valid(number))


def _has_phone(text: str) -> bool:
    """Numbers of fewer than nine digits are let pass: in some countries "2013-2014" is one."""
    from phonenumbers import PhoneNumberMatcher

    if len(re.findall(r"\d", text)) < LONG:
        return False
    matches = (match.raw_string for region in _REGIONS for match in PhoneNumberMatcher(text, region))
    return any(len(re.findall(r"\d", raw)) >= LONG for raw in matches)

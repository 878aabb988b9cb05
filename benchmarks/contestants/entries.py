"""The user's own table, which transactional contestants of every kind write into: an effect per message or workflow."""

from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ENTRIES = "create table entries (order_id bigint primary key, amount bigint not null)"
ENTER = "insert into entries (order_id, amount) values (%s, %s)"


class Base(DeclarativeBase):
    """The user's own tables."""


class Entry(Base):
    """One effect."""

    __tablename__ = "entries"

    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    amount: Mapped[int] = mapped_column(BigInteger)

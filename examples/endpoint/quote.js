// What it costs to ship a parcel.
const rates = { NL: 4, DE: 5, US: 12 };

module.exports = async function (context, { country, kg = 1 }) {
  const rate = rates[country];
  if (!rate) {
    throw new TypeError(`nothing is shipped to ${country}`); // an InputError: the caller's fault
  }
  console.log(`quote for ${kg} kg to ${country}`);
  return { country, kg: Number(kg), price: rate + 2 * kg, currency: "EUR" };
};
